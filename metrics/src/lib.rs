//! Metrics: declared once, where they are counted, and collected at the scrape.
//!
//! [`metrics!`] declares a group: a struct whose fields are the cells that the code counts with, and for each field the name
//! of the metric; the doc comment of the field is its help text, its type is the metric's type.
//!
//! ```
//! use std::time::Duration;
//!
//! use palisade_metrics::{Counter, DurationHistogram, MetricFamilies, MetricGroup, labelled, metrics};
//!
//! labelled! {
//!     /// Replies by result.
//!     pub struct Replies: Counter, "result" { accepted, refused }
//! }
//!
//! metrics! {
//!     /// Metrics of an example.
//!     pub struct Example {
//!         /// Replies, by result.
//!         pub replies: Replies = "palisade_replies_total",
//!         /// Time to a reply.
//!         pub reply: DurationHistogram = "palisade_reply_seconds" buckets &[Duration::from_millis(1)],
//!     }
//! }
//!
//! let example = Example::default();
//! example.replies.refused.inc();
//! example.reply.observe(Duration::from_micros(10));
//! let mut families = MetricFamilies::default();
//! Example::collect(&[&example], &mut families);
//! assert_eq!(families.iter().count(), 2);
//! ```
//!
//! Counting is one relaxed atomic operation, without locks or allocations. Threads on the packet path have a group each
//! ([`WorkerCounter`]: one writer, so that not even the bus is locked); [`MetricGroup::collect`] takes all groups of a type
//! and adds them up.
//!
//! What is computed at the scrape, not counted, is added to the [`MetricFamilies`] with its name and help text there. The
//! text format is not this crate's business (`node/src/metrics`).

mod cells;
mod families;
mod histogram;

pub use cells::{Counter, DurationCounter, DurationGauge, Gauge, WorkerCounter, WorkerGauge};
pub use families::{Kind, Label, MetricFamilies, MetricFamily, Sample, Samples, Value, valid_name};
pub use histogram::{DurationHistogram, Histogram};

/// The cells of one metric, or of those of its series that differ in the labels named by the type.
pub trait Metric {
    /// The type that Prometheus is told.
    const KIND: Kind;

    /// Adds the samples of the metric: the sum over `parts`, which are the same metric counted by several threads.
    fn sample(parts: &[&Self], samples: &mut Samples<'_>);
}

/// Several metrics that are counted together.
pub trait MetricGroup {
    /// Adds the metrics, each the sum over `groups`, which are counted by several threads.
    fn collect(groups: &[&Self], families: &mut MetricFamilies);
}

/// Declares a [`MetricGroup`]: a struct with a cell for each metric, `Default`, and `collect`.
///
/// A field is `/// help` `pub field: Type = "palisade_name"`, where the type is a [`Metric`]; histograms have `buckets`
/// behind the name. A field without a name is a [`MetricGroup`] of its own.
#[macro_export]
macro_rules! metrics {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $group:ident {
            $(
                $(#[doc = $help:literal])+
                $field_visibility:vis $field:ident: $type:ty $(= $name:literal $(buckets $buckets:expr)?)?
            ),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug)]
        $visibility struct $group {
            $( $(#[doc = $help])+ $field_visibility $field: $type, )*
        }

        impl Default for $group {
            fn default() -> $group {
                $group { $( $field: $crate::__new!($type $($(, $buckets)?)?), )* }
            }
        }

        impl $crate::MetricGroup for $group {
            fn collect(groups: &[&$group], families: &mut $crate::MetricFamilies) {
                $( $crate::__collect!(groups, families, $field, $type, [$($help),+] $(, $name)?); )*
            }
        }
    };
}

/// Declares a [`Metric`] with a label: a struct with a cell for each of the label's values, which the fields name.
#[macro_export]
macro_rules! labelled {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $metric:ident: $cell:ty, $label:literal { $($value:ident),+ $(,)? }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Default)]
        $visibility struct $metric {
            $( #[doc = concat!("The series `", $label, "=\"", stringify!($value), "\"`.")] pub $value: $cell, )+
        }

        impl $crate::Metric for $metric {
            const KIND: $crate::Kind = <$cell as $crate::Metric>::KIND;

            fn sample(parts: &[&$metric], samples: &mut $crate::Samples<'_>) {
                $(
                    let cells: Vec<&$cell> = parts.iter().map(|part| &part.$value).collect();
                    <$cell as $crate::Metric>::sample(&cells, &mut samples.with($label, stringify!($value)));
                )+
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __new {
    ($type:ty) => {
        <$type as Default>::default()
    };
    ($type:ty, $buckets:expr) => {
        <$type>::new($buckets)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __collect {
    ($groups:ident, $families:ident, $field:ident, $type:ty, $help:expr) => {
        let parts: Vec<&$type> = $groups.iter().map(|group| &group.$field).collect();
        <$type as $crate::MetricGroup>::collect(&parts, $families);
    };
    ($groups:ident, $families:ident, $field:ident, $type:ty, $help:expr, $name:literal) => {
        const { assert!($crate::valid_name($name, <$type as $crate::Metric>::KIND), "not a name for a metric of this type") };
        let parts: Vec<&$type> = $groups.iter().map(|group| &group.$field).collect();
        $families.add($name, &$help, <$type as $crate::Metric>::KIND, |samples| {
            <$type as $crate::Metric>::sample(&parts, samples);
        });
    };
}

#[cfg(test)]
mod tests;
