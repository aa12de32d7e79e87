//! TLS with real certificates and tonic's own client.

use std::path::Path;

use proto::{FlowsRequest, SetModeRequest, StatusRequest};
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::authority::Authority;
use super::*;

fn files(folder: &Path) -> TlsFiles {
    TlsFiles { certificate: folder.join("tls.crt"), key: folder.join("tls.key"), client_authority: folder.join("ca.crt") }
}

/// Puts files where they belong, each replaced in one step.
fn put(files: &TlsFiles, (certificate, key): &(String, String), authority: &str) {
    for (path, text) in [(&files.certificate, certificate.as_str()), (&files.key, key), (&files.client_authority, authority)] {
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, path).expect("replaced");
    }
}

/// Asks for the status as this client, trusting this authority.
async fn ask(served: &Served, trusted: &Authority, client: Option<&(String, String)>) -> Result<SekishoClient<Channel>, String> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&trusted.pem)).domain_name("agent.test");
    if let Some((certificate, key)) = client {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let address = served.tcp.expect("TCP is on");
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address").tls_config(tls).expect("a good configuration");
    let channel = endpoint.connect().await.map_err(|e| format!("{e:?}"))?;
    let mut client = SekishoClient::new(channel);
    // Under TLS 1.3 a client learns only now that its certificate was refused.
    client.status(StatusRequest {}).await.map_err(|e| format!("{e:?}"))?;
    Ok(client)
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_authority_are_answered() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let folder = Folder::new();
    put(&files(&folder.0), &ours.server(), &ours.pem);
    let tls = Tls::load(files(&folder.0)).expect("good files");
    // Not a loopback address alone: any.
    let served = Served::start_with(Some("0.0.0.0:0"), Some(tls), 16).await;
    let mut client = ask(&served, &ours, Some(&ours.client())).await.expect("a client of ours is answered");
    let asked = client.flows(FlowsRequest { all: true, ..FlowsRequest::default() }).await;
    asked.expect("and gets records");
    let refused = client.set_mode(SetModeRequest { mode: "observe".into() }).await.expect_err("it may set nothing");
    assert_eq!(refused.code(), Code::PermissionDenied);
    ask(&served, &ours, None).await.expect_err("no certificate");
    ask(&served, &ours, Some(&theirs.client())).await.expect_err("another authority's");
    ask(&served, &ours, Some(&ours.server())).await.expect_err("a server's certificate is none of a client");
    ask(&served, &theirs, Some(&ours.client())).await.expect_err("a client that does not trust the agent");
    let address = served.tcp.expect("TCP is on");
    assert!(
        SekishoClient::connect(format!("http://{address}")).await.is_err() || {
            let mut plain = SekishoClient::connect(format!("http://{address}")).await.expect("connected");
            plain.status(StatusRequest {}).await.is_err()
        }
    );
    // The socket serves as before.
    served.client().await.status(StatusRequest {}).await.expect("answered over the socket");
}

#[tokio::test]
async fn replaced_files_are_taken_without_a_restart_and_broken_ones_are_not() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let folder = Folder::new();
    let files = files(&folder.0);
    put(&files, &first.server(), &first.pem);
    let served = Served::start_with(Some("127.0.0.1:0"), Some(Tls::load(files.clone()).expect("good files")), 16).await;
    let mut open = ask(&served, &first, Some(&first.client())).await.expect("answered");
    // Half of a rotation: the key is not the certificate's.
    std::fs::write(&files.key, second.server().1).expect("written");
    ask(&served, &first, Some(&first.client())).await.expect("the former pair stays in use");
    put(&files, &second.server(), &second.pem);
    ask(&served, &second, Some(&second.client())).await.expect("the new pair is in use");
    ask(&served, &second, Some(&first.client())).await.expect_err("the former authority counts no more");
    open.status(StatusRequest {}).await.expect("what is open stays open");
    std::fs::remove_file(&files.certificate).expect("removed");
    ask(&served, &second, Some(&second.client())).await.expect("what was read stays in use");
}

#[test]
fn what_cannot_be_used_is_said() {
    let folder = Folder::new();
    let files = files(&folder.0);
    let authority = Authority::new("ours");
    let error = |files: &TlsFiles| Tls::load(files.clone()).expect_err("not usable").to_string();
    assert!(error(&files).contains("tls.key"), "{}", error(&files));
    put(&files, &authority.server(), "no certificate");
    assert!(error(&files).contains("ca.crt holds no certificate"), "{}", error(&files));
    put(&files, &(authority.server().0, authority.server().1), &authority.pem);
    assert!(error(&files).contains("certificate and key"), "{}", error(&files));
}
