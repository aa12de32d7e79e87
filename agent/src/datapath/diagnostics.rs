//! What the kernel programs' rare paths met, in the agent's own log at level debug. Only a build with the feature
//! `kernel-log` has programs that speak: it is for looking into the programs themselves, what users rely on are counters.

/// The programs' voice.
pub(super) struct Diagnostics {
    tell: Option<Box<dyn FnMut() + Send>>,
}

impl Diagnostics {
    /// Of a loaded object.
    #[cfg(feature = "kernel-log")]
    pub(super) fn of(object: &mut aya::Ebpf) -> Self {
        match aya_log::EbpfLogger::init(object) {
            Ok(mut logger) => Self { tell: Some(Box::new(move || logger.flush())) },
            Err(error) => {
                tracing::warn!(%error, "the kernel programs' log cannot be read");
                Self { tell: None }
            }
        }
    }

    /// Of a loaded object that has none.
    #[cfg(not(feature = "kernel-log"))]
    pub(super) fn of(_: &mut aya::Ebpf) -> Self {
        Self { tell: None }
    }

    /// Logs what was said since the last call.
    pub(super) fn tell(&mut self) {
        if let Some(tell) = &mut self.tell {
            tell();
        }
    }
}

impl std::fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Diagnostics").field("speaking", &self.tell.is_some()).finish()
    }
}
