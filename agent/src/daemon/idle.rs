//! How long UDP flows may be idle: as the operator says, else as long as this node's connection tracking keeps them, which
//! may be loaded, and set, at any time.

use std::time::Duration;

use crate::cli::AgentArgs;
use crate::datapath;
use crate::flow::{Engine, UDP_NS, UDP_STREAM_NS};

/// Lets the engine follow.
pub(super) fn follow(args: &AgentArgs, engine: &mut Engine) {
    let kernel = datapath::udp_timeouts();
    engine.set_udp_idle(
        time(args.udp_timeout, kernel.map(|(unanswered, _)| unanswered), UDP_NS),
        time(args.udp_stream_timeout, kernel.map(|(_, answered)| answered), UDP_STREAM_NS),
    );
}

/// In nanoseconds. A flow that is forgotten before the node forgets its translation would be judged again, perhaps as one that
/// the other side opened: the kernel's time counts where it is the longer one.
fn time(set: Option<Duration>, kernel: Option<Duration>, least_ns: u64) -> u64 {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    set.map_or_else(|| kernel.map_or(0, nanoseconds).max(least_ns), nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_longer_time_counts_unless_one_is_set() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(time(None, None, UDP_STREAM_NS), 120 * SECOND);
        assert_eq!(time(None, seconds(60), UDP_STREAM_NS), 120 * SECOND);
        assert_eq!(time(None, seconds(180), UDP_STREAM_NS), 180 * SECOND);
        assert_eq!(time(seconds(5), seconds(180), UDP_STREAM_NS), 5 * SECOND);
    }
}
