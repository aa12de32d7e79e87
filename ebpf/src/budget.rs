//! Token buckets per endpoint: no pod can fill the flow tables or the rings for others, and nobody else can use up what a
//! pod needs for the flows that it opens itself. Denied flows have buckets of their own.
//!
//! One CPU refills per tick. Two CPUs may both take the last token: the bucket then owes, and nothing is lost.

use sekisho_core::layout::{Config, EGRESS, EndpointState, verdict};

use crate::kernel::{add, swap_if};
use crate::maps::CONFIG;
use crate::scratch::{Scratch, task};
use crate::tables;

/// A whole token.
const TOKEN: u64 = 1024;
/// Ticks that a refill reckons at most, so that no product overflows.
const LONGEST: u64 = 1 << 20;

/// The switches.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether the endpoint itself opened the scratch's new flow. Its first packet has to come from the endpoint: of a packet
/// that comes in, anyone may forge what it seems to answer. A flow that is judged again has shown who opened it.
#[inline(always)]
pub(crate) fn own(scratch: &Scratch) -> bool {
    scratch.flow.opened == EGRESS && (scratch.direction == EGRESS || scratch.task == task::AGAIN)
}

/// Takes an event's token of the endpoint in slot `index`, for a flow that it opened itself or another; false = none left.
#[inline(always)]
pub(crate) fn event(index: u32, own: bool) -> bool {
    let Some(config) = config() else { return false };
    if config.event_rate == 0 {
        return true;
    }
    let Some(state) = filled_state(index, config) else { return false };
    take(if own { &mut state.event_tokens[0] } else { &mut state.event_tokens[1] })
}

/// Takes a token for inserting the scratch's new flow; false = none left.
#[inline(always)]
pub(crate) fn insert(scratch: &Scratch) -> bool {
    let Some(config) = config() else { return false };
    let denied = scratch.flow.verdict == verdict::DENIED;
    if (if denied { config.denied_rate } else { config.insert_rate }) == 0 {
        return true;
    }
    let Some(state) = filled_state(scratch.index, config) else { return false };
    let bucket = usize::from(!own(scratch)) | usize::from(denied) << 1;
    // SAFETY: `bucket` is below 4.
    take(unsafe { state.insert_tokens.get_unchecked_mut(bucket & 3) })
}

/// Whether others have so many flows made at the endpoint that they may push its own out of the table: more than a sixteenth of what
/// they may have at once is used. Where nothing limits them, it is assumed.
#[inline(always)]
pub(crate) fn flooded(scratch: &Scratch) -> bool {
    let (Some(config), Some(state)) = (config(), tables::state(scratch.index)) else { return false };
    let [_, allowed, _, denied] = state.insert_tokens;
    used(allowed, config.insert_rate, config.insert_burst) || used(denied, config.denied_rate, config.denied_burst)
}

#[inline(always)]
fn used(tokens: u64, rate: u32, burst: u32) -> bool {
    let full = u64::from(burst) * TOKEN;
    rate == 0 || tokens.cast_signed() < (full - full / 16).cast_signed()
}

#[inline(always)]
fn take(tokens: &mut u64) -> bool {
    if (*tokens).cast_signed() < TOKEN.cast_signed() {
        return false;
    }
    add(tokens, TOKEN.wrapping_neg());
    true
}

/// The endpoint's buckets, with what has come in since the last tick.
#[inline(always)]
fn filled_state(index: u32, config: &Config) -> Option<&'static mut EndpointState> {
    let state = tables::state(index)?;
    if state.refilled != crate::kernel::jiffies() {
        refill(state, config);
    }
    Some(state)
}

/// Once per tick and endpoint.
#[inline(never)]
fn refill(state: &mut EndpointState, config: &Config) {
    let now = crate::kernel::jiffies();
    let before = state.refilled;
    if now == before || !swap_if(&mut state.refilled, before, now) {
        return;
    }
    let ticks = u64::from(now.wrapping_sub(before)).min(LONGEST);
    let more = |rate: u32| (ticks * u64::from(rate) * TOKEN).checked_div(u64::from(config.hz)).unwrap_or(0);
    let [own, others] = &mut state.event_tokens;
    let events = more(config.event_rate);
    fill(own, events, config.event_burst);
    fill(others, events, config.event_burst);
    let [own, others, own_denied, others_denied] = &mut state.insert_tokens;
    let inserts = more(config.insert_rate);
    fill(own, inserts, config.insert_burst);
    fill(others, inserts, config.insert_burst);
    let denied = more(config.denied_rate);
    fill(own_denied, denied, config.denied_burst);
    fill(others_denied, denied, config.denied_burst);
}

#[inline(always)]
fn fill(tokens: &mut u64, more: u64, burst: u32) {
    let full = (u64::from(burst) * TOKEN).cast_signed();
    *tokens = tokens.wrapping_add(more).cast_signed().min(full).cast_unsigned();
}
