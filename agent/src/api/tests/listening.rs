//! The sockets, and who may do what over which.

use std::os::unix::fs::PermissionsExt as _;

use proto::{AlertsRequest, ExplainRequest, FlowsRequest, GetModeRequest, SetModeRequest, StatusRequest};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_with_the_agent() {
    let served = Served::start(None, 16).await;
    let socket = served.folder.socket();
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    served.stop.send_replace(true);
    served.serving.await.expect("no panic").expect("a good end");
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_is_not() {
    let folder = Folder::new();
    let first = bind(&folder.socket(), None, None).await.expect("a free path");
    let error = bind(&folder.socket(), None, None).await.expect_err("taken");
    assert!(matches!(error, BindError::LiveAgent(_)), "{error}");
    // As after SIGKILL: the file stays, nobody listens.
    let copy = folder.socket().with_extension("kept");
    std::fs::hard_link(folder.socket(), &copy).expect("a link");
    drop(first);
    std::fs::rename(&copy, folder.socket()).expect("a stale socket");
    bind(&folder.socket(), None, None).await.expect("the stale socket is replaced");
}

#[tokio::test]
async fn what_is_not_a_socket_is_left_alone() {
    let folder = Folder::new();
    let path = folder.0.join("precious");
    std::fs::write(&path, "data").expect("a file");
    let error = bind(&path, None, None).await.expect_err("a file is in the way");
    assert!(matches!(error, BindError::NotSocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "data");
}

#[tokio::test]
async fn tcp_is_loopback_only_and_its_port_must_be_free() {
    let folder = Folder::new();
    let error = bind(&folder.socket(), Some("0.0.0.0:0".parse().expect("an address")), None).await.expect_err("not loopback");
    assert!(matches!(error, BindError::NotLoopback(_)), "{error}");
    assert!(check_loopback("[::1]:1".parse().expect("an address")).is_ok());
    assert!(check_loopback("[::ffff:127.0.0.1]:1".parse().expect("an address")).is_ok());
    assert!(check_loopback("10.0.0.1:1".parse().expect("an address")).is_err());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let error = bind(&folder.socket(), Some(address), None).await.expect_err("taken");
    assert!(matches!(error, BindError::PortInUse(_)), "{error}");
    assert!(error.to_string().contains(&address.port().to_string()));
}

#[tokio::test]
async fn questions_are_answered_and_refused_with_their_codes() {
    let served = Served::start(None, 16).await;
    let mut client = served.client().await;
    let status = client.status(StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.ready, status.node.as_str()), (true, "node-1"));
    let ask = |to: &str| ExplainRequest { from: "shop/web".into(), to: to.into(), port: 80, protocol: "TCP".into() };
    let answer = client.explain(ask("shop/db")).await.expect("an answer").into_inner();
    assert_eq!(answer.verdict, proto::Verdict::Denied as i32);
    let refusal = client.explain(ask("shop/nobody")).await.expect_err("unknown");
    assert_eq!((refusal.code(), refusal.message()), (Code::NotFound, "pod shop/nobody is not known"));
}

#[tokio::test]
async fn a_request_that_lacks_something_is_refused_by_name() {
    let served = Served::start(None, 16).await;
    let mut client = served.client().await;
    let ask = |from: &str, to: &str, port: u32, protocol: &str| ExplainRequest {
        from: from.into(),
        to: to.into(),
        port,
        protocol: protocol.into(),
    };
    let (all, wanted) = (["from (", "to (", "port ("], Code::InvalidArgument);
    for (request, missing) in [
        (ExplainRequest::default(), &all[..]),
        (ask("shop/web", "", 80, "TCP"), &all[1..2]),
        (ask("", "shop/db", 80, "TCP"), &all[..1]),
        (ask("shop/web", "shop/db", 0, "udp"), &all[2..]),
        (ask("shop/web", "shop/db", 0, "17"), &all[2..]),
        (ask("", "", 0, "ICMP"), &all[..2]),
    ] {
        let refusal = client.explain(request.clone()).await.expect_err("something is missing");
        assert_eq!(refusal.code(), wanted, "{request:?}");
        for field in all {
            assert_eq!(refusal.message().contains(field), missing.contains(&field), "{request:?}: {}", refusal.message());
        }
    }
    client.explain(ask("shop/web", "shop/db", 0, "ICMP")).await.expect("ICMP has no ports");
    client.explain(ask("shop/web", "shop/db", 0, "47")).await.expect("GRE has no ports");
    let refusal = client.set_mode(SetModeRequest::default()).await.expect_err("no mode");
    assert!(refusal.code() == wanted && refusal.message().contains("mode is missing"), "{refusal}");
    let refusal = client.flows(FlowsRequest::default()).await.expect_err("nothing is asked for");
    assert!(refusal.code() == wanted && refusal.message().contains("last, all, since and follow"), "{refusal}");
    let until = Some(proto::from_nanoseconds(1));
    let refusal = client.flows(FlowsRequest { until, ..FlowsRequest::default() }).await.expect_err("an end is no beginning");
    assert!(refusal.code() == wanted && refusal.message().contains("last, all, since and follow"), "{refusal}");
    let refusal = client.alerts(AlertsRequest::default()).await.expect_err("nothing is asked for");
    assert!(refusal.code() == wanted && refusal.message().contains("last, all, since and follow"), "{refusal}");
}

#[tokio::test]
async fn the_mode_is_set_over_the_unix_socket_only() {
    let served = Served::start(Some("127.0.0.1:0"), 16).await;
    let mut local = served.client().await;
    let set = SetModeRequest { mode: "audit".into() };
    assert_eq!(local.set_mode(set.clone()).await.expect("allowed").into_inner().mode, "audit");
    let address = served.tcp.expect("TCP is on");
    let mut remote = SekishoClient::connect(format!("http://{address}")).await.expect("an agent");
    assert_eq!(remote.get_mode(GetModeRequest {}).await.expect("asking is allowed").into_inner().mode, "enforce");
    assert_eq!(remote.set_mode(set).await.expect_err("setting is not").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn health_follows_readiness() {
    let served = Served::start(None, 16).await;
    let mut client = HealthClient::new(served.channel().await);
    let mut last = ServingStatus::Unknown;
    for _ in 0..100 {
        let request = HealthCheckRequest { service: "sekisho.v1.Sekisho".into() };
        if let Ok(answer) = client.check(request).await {
            last = answer.into_inner().status();
        }
        if last == ServingStatus::Serving {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(last, ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_names_the_services() {
    let served = Served::start(None, 16).await;
    let mut client = ServerReflectionClient::new(served.channel().await);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.expect("reflection").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("not a list") };
    for wanted in
        ["sekisho.v1.Sekisho", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
    {
        assert!(list.service.iter().any(|service| service.name == wanted), "{wanted}: {list:?}");
    }
}
