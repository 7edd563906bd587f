//! The names of the devices for re-injection.

use std::collections::BTreeSet;

use crate::datapath::{Interface, StartError};

/// The names of the devices for re-injection: one for each zone of this machine, from which packets lead to that zone's
/// interfaces only, and one for what the firewall itself answers.
///
/// A zone's device is numbered by the zone's place among those of the configuration. That number is known before the member has
/// applied anything of the log, and no other member has to know it. The device's alias is the zone's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceNames {
    control: String,
    /// In the order of the configuration.
    zones: Vec<String>,
}

impl DeviceNames {
    /// The devices of a machine whose interfaces are in these zones. `control` is the name of the device for answers.
    pub fn new<'a>(control: &str, zones: impl IntoIterator<Item = &'a str>) -> DeviceNames {
        let mut names = DeviceNames { control: control.to_owned(), zones: Vec::new() };
        for zone in zones {
            if names.zone(zone).is_none() {
                names.zones.push(zone.to_owned());
            }
        }
        names
    }

    /// What the names of all devices begin with.
    fn prefix(&self) -> &str {
        self.control.trim_end_matches(|c: char| c.is_ascii_digit())
    }

    /// The device for answers.
    #[must_use]
    pub fn control(&self) -> &str {
        &self.control
    }

    /// Zones and their devices.
    pub fn zones(&self) -> impl Iterator<Item = (&str, String)> {
        let prefix = self.prefix();
        self.zones.iter().enumerate().map(move |(place, zone)| (zone.as_str(), format!("{prefix}{:05}", place + 1)))
    }

    /// All devices, the one for answers first.
    pub fn all(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.control.clone()).chain(self.zones().map(|(_, device)| device))
    }

    /// The place of a zone in [`DeviceNames::zones`].
    #[must_use]
    pub fn zone(&self, name: &str) -> Option<usize> {
        self.zones.iter().position(|zone| zone == name)
    }

    /// Whether an interface has the name of one of the devices.
    #[must_use]
    pub fn contains(&self, interface: &str) -> bool {
        self.all().any(|device| device == interface)
    }

    /// The pairs of incoming and outgoing interface that the kernel may forward between: from the device of a zone to the
    /// zone's interfaces, and from the device for answers to all data interfaces. `index` is that of an interface, if it
    /// exists.
    pub(crate) fn forward_pairs(
        &self,
        interfaces: &[Interface],
        index: impl Fn(&str) -> Option<u32>,
    ) -> BTreeSet<(u32, u32)> {
        let mut pairs = BTreeSet::new();
        for outgoing in interfaces {
            let zone = self.zones().find(|(zone, _)| *zone == outgoing.zone).map(|(_, device)| device);
            for device in zone.into_iter().chain([self.control.clone()]) {
                pairs.extend(index(&device).zip(index(&outgoing.name)));
            }
        }
        pairs
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        match self.all().find(|device| !crate::datapath::gate::valid_interface_name(device)) {
            Some(name) => Err(StartError::Name { name }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_number_the_zones_in_the_order_of_the_configuration() {
        let names = DeviceNames::new("palisade0", ["outside", "inside", "outside", "dmz"]);
        let devices: Vec<String> = names.all().collect();
        assert_eq!(devices, ["palisade0", "palisade00001", "palisade00002", "palisade00003"]);
        let zones: Vec<_> = names.zones().map(|(zone, _)| zone).collect();
        assert_eq!(zones, ["outside", "inside", "dmz"]);
        assert_eq!((names.zone("dmz"), names.zone("lan")), (Some(2), None));
        assert!(names.contains("palisade00003") && !names.contains("palisade00004"));
        assert!(names.check().is_ok());
        assert!(DeviceNames::new("a-name-too-long", ["inside"]).check().is_err());
    }

    #[test]
    fn forward_pairs_lead_from_each_zone_to_its_own_interfaces() {
        let interface = |(name, zone): (&str, &str)| Interface {
            name: name.into(),
            zone: zone.into(),
            antispoof: true,
            track: true,
        };
        let interfaces = [("a", "outside"), ("b", "inside"), ("c", "outside"), ("d", "dmz")].map(interface);
        let names = DeviceNames::new("palisade0", interfaces.iter().map(|i| i.zone.as_str()));
        let known = ["a", "b", "c", "palisade0", "palisade00001", "palisade00002", "palisade00003"];
        let index = |name: &str| known.iter().position(|k| *k == name).and_then(|at| u32::try_from(at + 1).ok());
        let pairs: Vec<_> = names.forward_pairs(&interfaces, index).into_iter().collect();
        assert_eq!(pairs, [(4, 1), (4, 2), (4, 3), (5, 1), (5, 3), (6, 2)], "a missing interface is in no pair");
    }
}
