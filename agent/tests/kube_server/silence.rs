//! A path to the API server that drops packets and says nothing: in a network namespace of the test's own.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sekisho::inventory::kube::{Access, Source};

use super::kube_server::Cluster;
use super::{policy, shop, until};

/// The namespace.
struct Alone(tempfile::TempDir);

impl Alone {
    fn run(test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let alone = Self(tempfile::tempdir()?);
        sekisho_lab::Netns::create(&alone.0.path().join("net"))?.within(test)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Nothing is mounted where none could be made.
        drop(std::process::Command::new("umount").arg(self.0.path().join("net")).output());
    }
}

/// A firewall that forgets, a node that lost its network: no packet says that the connection is dead.
#[test]
#[ignore = "needs etcd and kube-apiserver, root and nft; run by `cargo xtask test`"]
fn a_path_that_falls_silent_is_noticed_and_caught_up_with() -> Result<()> {
    Alone::run(|| {
        let cluster = Cluster::start()?;
        let objects = cluster.objects()?;
        for object in shop() {
            objects.create(&object)?;
        }
        let source = Source::start(&Access::Kubeconfig(cluster.config()?), "n1")?;
        until(&source, Duration::from_secs(20), |s| s.policies.len() == 2)?;
        // Watches that are older than a keepalive's first probe.
        std::thread::sleep(Duration::from_secs(10));
        ensure!(source.state().stale_since.is_none(), "{:?}", source.state());

        let silence = cluster.silence()?;
        let since = Instant::now();
        while source.state().stale_since.is_none() {
            ensure!(since.elapsed() < Duration::from_secs(25), "not noticed");
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("silence was noticed after {:?}: {:?}", since.elapsed(), source.state());
        cluster.with_another(|other| other.create(&policy("a", "new", "new")))?;
        drop(silence);
        let back = Instant::now();
        until(&source, Duration::from_secs(8), |s| s.policies.contains_key(&("a".into(), "new".into())))?;
        while source.state().stale_since.is_some() {
            ensure!(back.elapsed() < Duration::from_secs(25), "still stale: {:?}", source.state());
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("in step {:?} after packets passed again", back.elapsed());
        Ok(())
    })
}
