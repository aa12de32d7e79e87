//! Token buckets per endpoint: no pod can fill the flow tables or the rings for others.
//!
//! One CPU refills per tick. Two CPUs may both take the last token: the bucket then owes, and nothing is lost.

use sekisho_core::layout::{Config, EndpointState};

use crate::kernel::{add, swap_if};
use crate::maps::CONFIG;
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

/// Takes an event's token of the endpoint in slot `index`; false = none left.
#[inline(always)]
pub(crate) fn event(index: u32) -> bool {
    take(index, false)
}

/// Takes an insert's token of the endpoint in slot `index`; false = none left.
#[inline(always)]
pub(crate) fn insert(index: u32) -> bool {
    take(index, true)
}

#[inline(always)]
fn take(index: u32, insert: bool) -> bool {
    let Some(config) = config() else { return false };
    let rate = if insert { config.insert_rate } else { config.event_rate };
    if rate == 0 {
        return true;
    }
    let Some(state) = tables::state(index) else { return false };
    if state.refilled != crate::kernel::jiffies() {
        refill(state, config);
    }
    let tokens = if insert { &mut state.insert_tokens } else { &mut state.event_tokens };
    if (*tokens).cast_signed() < TOKEN.cast_signed() {
        return false;
    }
    add(tokens, TOKEN.wrapping_neg());
    true
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
    let hz = u64::from(config.hz);
    state.event_tokens = filled(state.event_tokens, ticks, hz, config.event_rate, config.event_burst);
    state.insert_tokens = filled(state.insert_tokens, ticks, hz, config.insert_rate, config.insert_burst);
}

#[inline(always)]
fn filled(tokens: u64, ticks: u64, hz: u64, rate: u32, burst: u32) -> u64 {
    let more = (ticks * u64::from(rate) * TOKEN).checked_div(hz).unwrap_or(0);
    let full = (u64::from(burst) * TOKEN).cast_signed();
    tokens.wrapping_add(more).cast_signed().min(full).cast_unsigned()
}
