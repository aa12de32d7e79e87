//! The shop: its pods, its servers, and what its people do.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Lab, Pod, PodSpec, Running};

use crate::workspace::root;

/// Everybody in it. The manifests are those of `deploy/examples/shop`; the pods are what a cluster would have
/// made of them.
pub(crate) struct Shop {
    pub(crate) frontend: Pod,
    pub(crate) api: Pod,
    pub(crate) database: Pod,
    pub(crate) stranger: Pod,
    servers: Vec<Running>,
    programs: PathBuf,
}

impl Shop {
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        for entry in fs::read_dir(root().join("deploy/examples/shop")).context("the shop's manifests are in deploy/examples/shop")? {
            let path = entry?.path();
            let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            lab.write_manifest(&name, &fs::read_to_string(&path)?)?;
        }
        let pod = |namespace: &str, name: &str, app: &str, kind: &str| {
            lab.pod(PodSpec::new(namespace, name).label("app", app).owner(kind, app).service_account(app))
        };
        let frontend = pod("shop", "frontend-5d9f7c6b8-q7k2m", "frontend", "Deployment")?;
        let api = pod("shop", "api-5d9f7c6b8-x2x4z", "api", "Deployment")?;
        let database = pod("shop", "database-0", "database", "StatefulSet")?;
        let stranger = pod("playground", "stranger-h8v9t", "stranger", "Job")?;
        // The same program under the names that one would meet in a shop.
        let programs = lab.directory().join("bin");
        fs::create_dir_all(&programs)?;
        for name in ["nginx", "api-server", "postgres", "curious"] {
            symlink(sekisho_lab::tool::binary()?, programs.join(name))?;
        }
        let servers = vec![
            api.start_as(programs.join("api-server"), &["serve", "http", "8080", "api"])?,
            database.start_as(programs.join("postgres"), &["serve", "tcp", "5432", "one row\n"])?,
        ];
        Ok(Self { frontend, api, database, stranger, servers, programs })
    }

    /// Leaves its servers running.
    pub(crate) fn stay_open(self) {
        for server in self.servers {
            server.detach();
        }
        for pod in [self.frontend, self.api, self.database, self.stranger] {
            pod.detach();
        }
    }

    pub(crate) fn sell(&self) -> Result<()> {
        let api = SocketAddr::new(self.api.v4(), 8080).to_string();
        let answer = self.frontend.run(self.programs.join("nginx"), &["http", &api, "/basket/42"])?;
        ensure!(answer.success(), "the frontend does not reach the api: {}", answer.stderr);
        println!("  frontend hears: {}", answer.stdout.trim());
        let database = SocketAddr::new(self.database.v6(), 5432).to_string();
        let answer = self.api.run(self.programs.join("api-server"), &["dial", "tcp", &database, "--bytes", "8"])?;
        ensure!(answer.success(), "the api does not reach the database: {}", answer.stderr);
        println!("  api hears: one row");
        Ok(())
    }

    pub(crate) fn trespass(&self) -> Result<()> {
        self.turned_away(&self.stranger, "curious", 5432)
    }

    pub(crate) fn short_cut(&self) -> Result<()> {
        self.turned_away(&self.frontend, "nginx", 5432)
    }

    fn turned_away(&self, from: &Pod, program: &str, port: u16) -> Result<()> {
        let target = SocketAddr::new(self.database.v4(), port).to_string();
        let answer = from.run(self.programs.join(program), &["dial", "tcp", &target, "--timeout", "700"])?;
        ensure!(answer.code == Some(1), "{} reaches the database: {answer:?}", from.name());
        println!("  {program} in {} hears nothing at all", from.name());
        Ok(())
    }

    pub(crate) fn scan(&self) -> Result<()> {
        let answer = self.stranger.run(self.programs.join("curious"), &["scan", "syn", &self.database.v4().to_string(), "5400", "5499"])?;
        ensure!(answer.success(), "the scan does not run: {}", answer.stderr);
        println!("  the scanner found: {}", answer.stdout.trim());
        Ok(())
    }
}
