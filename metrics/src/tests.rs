use std::time::Duration;

use super::*;

labelled! {
    /// By result.
    struct Results: WorkerCounter, "result" { good, bad }
}

metrics! {
    /// Metrics of a thread.
    struct Thread {
        /// Results, by
        /// result.
        results: Results = "palisade_results_total",
        /// Time of a result.
        time: DurationHistogram = "palisade_result_seconds" buckets &[Duration::from_micros(800), Duration::from_secs(1)],
        /// Others.
        nested: Nested,
    }
}

metrics! {
    /// Metrics of a part.
    struct Nested {
        /// Items now.
        items: WorkerGauge = "palisade_items",
        /// Time spent.
        spent: DurationCounter = "palisade_spent_seconds_total",
    }
}

fn values(family: &MetricFamily) -> Vec<(String, Value)> {
    let labels = |s: &Sample| s.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<String>();
    family.samples.iter().map(|s| (labels(s), s.value.clone())).collect()
}

#[test]
fn group_collects_every_field_summed_over_threads() {
    let (a, b) = (Thread::default(), Thread::default());
    a.results.good.inc();
    b.results.good.add(2);
    a.time.observe(Duration::from_micros(800));
    b.time.observe(Duration::from_micros(801));
    b.time.observe(Duration::from_secs(2));
    a.nested.items.set(3);
    b.nested.items.set(4);
    b.nested.spent.add(Duration::from_millis(500));
    let mut families = MetricFamilies::default();
    Thread::collect(&[&a, &b], &mut families);
    let all: Vec<_> = families.iter().map(|f| (f.name, f.help.as_str(), f.kind, values(f))).collect();
    let unlabelled = |value| vec![(String::new(), value)];
    let buckets = vec![(0.0008, 1), (1.0, 1), (f64::INFINITY, 1)];
    assert_eq!(
        all,
        [
            (
                "palisade_results_total",
                "Results, by result.",
                Kind::Counter,
                vec![("result=good".into(), Value::Integer(3)), ("result=bad".into(), Value::Integer(0))],
            ),
            (
                "palisade_result_seconds",
                "Time of a result.",
                Kind::Histogram,
                unlabelled(Value::Histogram { sum: 2.001_601, buckets }),
            ),
            ("palisade_items", "Items now.", Kind::Gauge, unlabelled(Value::Integer(7))),
            ("palisade_spent_seconds_total", "Time spent.", Kind::Counter, unlabelled(Value::Float(0.5))),
        ]
    );
}

#[test]
fn histogram_bounds_are_inclusive() {
    let histogram = Histogram::new(&[1, 2, 4, 8]);
    [1, 2, 3, 8, 9].into_iter().for_each(|value| histogram.observe(value));
    let mut families = MetricFamilies::default();
    families.add("palisade_size", &["Sizes"], Kind::Histogram, |s| Histogram::sample(&[&histogram], s));
    let buckets = vec![(1.0, 1), (2.0, 1), (4.0, 1), (8.0, 1), (f64::INFINITY, 1)];
    let family = families.iter().next().unwrap();
    assert_eq!(values(family), [(String::new(), Value::Histogram { sum: 23.0, buckets })]);
    assert_eq!(histogram.count(), 5);
}

#[test]
fn name_has_the_prefix_and_the_suffix_of_its_type() {
    for (name, kind, valid) in [
        ("palisade_a_total", Kind::Counter, true),
        ("palisade_a", Kind::Counter, false),
        ("palisade_a", Kind::Gauge, true),
        ("palisade_a_total", Kind::Gauge, false),
        ("palisade_a_total", Kind::Histogram, false),
        ("a_total", Kind::Counter, false),
        ("palisade_A", Kind::Gauge, false),
    ] {
        assert_eq!(valid_name(name, kind), valid, "{name} {kind:?}");
    }
}
