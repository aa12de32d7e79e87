//! What both ends of an explanation come to.

use crate::{Decision, ExplainResponse, Outcome};

impl ExplainResponse {
    /// Fills in `verdict` and `enforced` from the ends: the worst that is known counts, and an end that is judged elsewhere leaves open
    /// what nobody here denies.
    pub fn conclude(&mut self) {
        let open = self.egress_elsewhere.is_some() || self.ingress_elsewhere.is_some();
        let ends: Vec<&Decision> = self.egress.iter().chain(&self.ingress).collect();
        let worst = |of: fn(&Decision) -> Outcome| {
            let said = |outcome: Outcome| ends.iter().any(|end| of(end) == outcome);
            let known = [Outcome::Denied, Outcome::Audit].into_iter().find(|outcome| said(*outcome));
            known.unwrap_or(if open || said(Outcome::Undetermined) { Outcome::Undetermined } else { Outcome::Allowed })
        };
        let (verdict, enforced) = (worst(Decision::verdict), worst(Decision::enforced));
        self.verdict = verdict.into();
        self.enforced = enforced.into();
    }
}
