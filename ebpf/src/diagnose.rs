//! What rare paths met, for whoever looks for a fault in the programs themselves: only in builds with the feature `log`. What
//! users rely on are counters and events.

/// Says something, if this build has a voice. The words are aya-log's: a format string and numbers.
macro_rules! diagnose {
    ($($words:tt)+) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!((), $($words)+);
    };
}

pub(crate) use diagnose;
