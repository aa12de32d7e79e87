//! The API server by HTTP, without kubectl's start-up time: so the moment of its answer is known exactly.
//! `kubectl proxy` carries the requests inside the control plane's network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekisho_lab::{Netns, until};
use serde_json::Value;

use crate::cluster::{Client, control_plane_netns};

const PORT: u16 = 8001;

/// A way to the API server as its administrator.
pub(super) struct Api {
    proxy: Child,
    netns: Netns,
}

/// What it answered, and when.
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The object.
    pub(super) body: Value,
    /// When the answer was there.
    pub(super) at: Instant,
}

impl Api {
    pub(super) fn start(client: &Client) -> Result<Self> {
        let proxy = client
            .kubectl(&["proxy", "--port", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("kubectl does not start")?;
        super::cleanup::end_on_interrupt(proxy.id());
        let api = Self { proxy, netns: control_plane_netns() };
        until(Duration::from_secs(10), "kubectl proxy answers", || Ok(api.ask("GET", "/version", None).is_ok()))?;
        Ok(api)
    }

    /// One request; whatever the API server answers is an answer.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.netns.within(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("kubectl proxy does not answer")?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let text = body.map(Value::to_string).unwrap_or_default();
            let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            // HTTP 1.0: the answer comes in one piece and ends with the connection.
            let head =
                format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", text.len());
            stream.write_all((head + &text).as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            let at = Instant::now();
            let answer = String::from_utf8_lossy(&answer);
            let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no HTTP status")?;
            Ok(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null), at })
        })
    }

    /// One request that must succeed.
    pub(super) fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let answer = self.ask(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.body["message"]);
        }
        Ok(answer)
    }

    /// The objects of a list.
    pub(super) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut answer = self.must("GET", path, None)?;
        Ok(answer.body["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Puts a policy in force, made or replaced; returns when the API server had it.
    pub(super) fn put_policy(&self, policy: &Value) -> Result<Instant> {
        let text = |field: &str| policy["metadata"][field].as_str().unwrap_or_default().to_owned();
        let folder = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", text("namespace"));
        let replaced = self.ask("PUT", &format!("{folder}/{}", text("name")), Some(policy))?;
        match replaced.status {
            200 | 201 => Ok(replaced.at),
            404 => Ok(self.must("POST", &folder, Some(policy))?.at),
            status => bail!("the policy {} was not taken: {status} {}", text("name"), replaced.body["message"]),
        }
    }

    /// Removes every policy of a namespace.
    pub(super) fn drop_policies(&self, namespace: &str) -> Result<()> {
        self.must("DELETE", &format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"), None).map(drop)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ended = self.proxy.kill();
        let _reaped = self.proxy.wait();
    }
}
