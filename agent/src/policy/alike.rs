//! Selectors that no rule in use tells apart: thousands of networks in one rule are one to the kernel's tables of rules.
//!
//! Classes speak of one selector for all that are alike. What a set says about a class stays what it was: a row depends on the
//! rules that name a selector, and those are the same for all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::sets::Set;

/// Which selector stands for which.
pub(super) struct Alike(HashMap<u32, u32>);

impl Alike {
    /// As the rules of these sets use them.
    pub(super) fn of(sets: &BTreeMap<u32, Arc<Set>>) -> Self {
        // The same rule stands in the sets of all pods that its policy selects.
        let mut seen: HashMap<(u32, &[u32]), u32> = HashMap::new();
        let mut rules: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for rule in sets.values().flat_map(|set| set.rules.iter().flatten()) {
            let Some(peers) = &rule.peers else { continue };
            let next = u32::try_from(seen.len()).unwrap_or(u32::MAX);
            let number = *seen.entry((rule.id, peers)).or_insert(next);
            if number == next {
                for selector in peers {
                    rules.entry(*selector).or_default().push(number);
                }
            }
        }
        let mut first: HashMap<Vec<u32>, u32> = HashMap::new();
        Self(rules.into_iter().map(|(selector, rules)| (selector, *first.entry(rules).or_insert(selector))).collect())
    }

    /// The one that stands for a selector; none where no rule speaks of it.
    pub(super) fn one(&self, selector: u32) -> Option<u32> {
        self.0.get(&selector).copied()
    }
}
