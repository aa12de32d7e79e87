//! The clocks read together once, so that everything after is arithmetic on a value.

/// One moment on every clock in use. Passed in; the flow room never asks for the time itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// Nanoseconds since 1970 UTC.
    pub wall_ns: u64,
    /// The kernel's 64-bit jiffies.
    pub jiffies: u64,
    /// Jiffies per second.
    pub hz: u32,
}

impl Now {
    /// The wall time of a boottime, as the wall clock stands now.
    pub fn wall(&self, boot_ns: u64) -> u64 {
        self.wall_ns.wrapping_sub(self.boot_ns).wrapping_add(boot_ns)
    }

    /// The boottime of the low 32 bits of jiffies: within half their range of now, never later than now.
    pub fn boot_of_jiffies(&self, low: u32) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what the kernel kept")]
        let age = (self.jiffies as u32).wrapping_sub(low);
        // A packet that passed after the clocks were read looks a few jiffies younger than now.
        let age = if age > u32::MAX / 2 { 0 } else { u64::from(age) };
        self.boot_ns.saturating_sub(age * 1_000_000_000 / u64::from(self.hz.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_wrap_and_never_lead() {
        let now = Now { boot_ns: 10_000_000_000, wall_ns: 1_000_000_000_000, jiffies: (1 << 32) + 10, hz: 250 };
        assert_eq!(now.boot_of_jiffies(10), 10_000_000_000);
        assert_eq!(now.boot_of_jiffies(u32::MAX), 10_000_000_000 - 11 * 4_000_000);
        assert_eq!(now.boot_of_jiffies(12), 10_000_000_000);
        assert_eq!(now.wall(9_000_000_000), 999_000_000_000);
    }
}
