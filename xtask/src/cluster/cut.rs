//! Nodes that do not reach the API server, as when a network breaks: nothing that they send it arrives, and nobody tells them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::node_netns;
use super::plan::Plan;

/// The table in each node's nftables that drops.
const TABLE: &str = "sekisho-e2e-cut";

/// As long as it is there, no node makes a connection to the API server.
#[derive(Debug)]
pub(crate) struct Cut(Plan);

impl Cut {
    /// Cuts every node off.
    pub(crate) fn from_api_server(plan: Plan) -> Result<Self> {
        let cut = Self(plan);
        // After the translation of the API server's Service.
        let rules =
            format!("table inet {TABLE} {{\n chain out {{\n  type filter hook output priority 10;\n  tcp dport 6443 drop;\n }}\n}}\n");
        for number in plan.numbers() {
            nft(number, &rules)?;
        }
        Ok(cut)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for number in self.0.numbers() {
            if let Err(error) = nft(number, &format!("delete table inet {TABLE}\n")) {
                eprintln!("    a node stays cut off: {error:#}");
            }
        }
    }
}

fn nft(node: u8, rules: &str) -> Result<()> {
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", node_netns(node).path().display()))
        .args(["--", "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nsenter does not start")?;
    child.stdin.take().context("standard input was piped")?.write_all(rules.as_bytes())?;
    if !child.wait()?.success() {
        bail!("nft does not take {rules:?}");
    }
    Ok(())
}
