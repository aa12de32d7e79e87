//! A client beyond this machine that vanishes without a word, its network cut: the agent lets go of its streams, and of
//! no one else's. Needs root; fails where it cannot run.

#[path = "../src/api/tests/authority.rs"]
mod authority;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use authority::Authority;
use sekisho_lab::{Agent, Lab, Place, netlink};
use sekisho_proto::sekisho_client::SekishoClient;
use sekisho_proto::{AlertsRequest, Record};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// By then the agent has asked and waited for the answer in vain.
const LET_GO: Duration = Duration::from_secs(30);
/// A busy machine.
const LATE: Duration = Duration::from_secs(5);

/// One that follows alerts, of which there are none: nothing is sent to it, so that no packet of the agent's own says
/// that it is not there any more.
struct Client {
    runtime: Runtime,
    stream: Streaming<Record>,
}

impl Client {
    /// Its sockets and its thread are in the place's network.
    fn follow(place: &Place, agent: SocketAddr, authority: &Authority) -> Result<Self> {
        let (certificate, key) = authority.client();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("agent.test");
        let tls = tls.identity(Identity::from_pem(certificate, key));
        place.netns().within(|| {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let stream = runtime.block_on(async {
                let channel = Endpoint::from_shared(format!("https://{agent}"))?.tls_config(tls)?.connect().await?;
                let request = AlertsRequest { follow: true, ..AlertsRequest::default() };
                anyhow::Ok(SekishoClient::new(channel).alerts(request).await?.into_inner())
            })?;
            Ok(Self { runtime, stream })
        })
    }

    /// Whether its stream has not ended.
    fn follows(&mut self) -> bool {
        let next = self.runtime.block_on(async { tokio::time::timeout(Duration::from_millis(100), self.stream.message()).await });
        next.is_err()
    }
}

/// Names of the streams that the agent serves.
fn streams(status: &Value) -> Vec<String> {
    let sinks = status["ledger"]["sinks"].as_array().into_iter().flatten();
    sinks.filter_map(|sink| sink["name"].as_str()).filter(|name| name.starts_with("grpc:")).map(str::to_owned).collect()
}

#[test]
fn a_client_that_vanished_is_let_go() -> Result<()> {
    sekisho_lab::use_programs(env!("CARGO_BIN_EXE_sekisho").into(), sekisho_lab::tool::binary()?);
    let lab = Lab::new("vanished")?;
    let ours = Authority::new("ours");
    let (certificate, key) = ours.server();
    let mut files = Vec::new();
    for (name, text) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &ours.pem)] {
        let file = lab.directory().join(name);
        fs::write(&file, text)?;
        files.push(file.display().to_string());
    }
    let address = SocketAddr::new(lab.node_v4(), 9463);
    let listen = address.to_string();
    let agent = Agent::start(&lab, &["--listen", &listen, "--tls-cert", &files[0], "--tls-key", &files[1], "--tls-client-ca", &files[2]])?;
    let mut stays = Client::follow(lab.node(), address, &ours)?;
    let staying = streams(&agent.status()?);
    ensure!(staying.len() == 1, "{staying:?}");
    let vanishes = Client::follow(lab.outside(), address, &ours)?;
    let both = streams(&agent.status()?);
    ensure!(both.len() == 2, "{both:?}");

    lab.outside().netns().within(|| netlink::set_down("eth0").context("the network cannot be cut"))?;
    let cut = Instant::now();
    while streams(&agent.status()?) != staying {
        ensure!(cut.elapsed() < LET_GO + LATE, "after {:?} the agent still serves {:?}", cut.elapsed(), streams(&agent.status()?));
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("let go {:?} after the cut", cut.elapsed());
    ensure!(stays.follows(), "who answers is served as before");
    drop(vanishes);
    Ok(())
}
