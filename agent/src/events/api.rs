//! The Kubernetes API, as far as events need it: one POST, as the pod that the agent runs in.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};
use tarbox_handover::pods::Pod;
use tarbox_types::{TenantId, rfc3339};

use super::told::Told;
use crate::failure::AgentError;

/// Where Kubernetes puts what a pod is known by.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longest that one event may take.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// Of an answer that refuses.
const MOST_BYTES: usize = 64 << 10;

/// The cluster's API server.
#[derive(Clone, Debug)]
pub struct ApiServer {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// `https://host:port`.
    address: String,
    /// Read for each call: Kubernetes renews it.
    token: PathBuf,
}

impl ApiServer {
    /// The one of the cluster that this process runs in; `None` where it runs in none, or was given no account.
    ///
    /// # Errors
    /// Where the account is not readable.
    pub fn of_this_pod() -> Result<Option<Self>, AgentError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let account = Path::new(ACCOUNT);
        let Some((host, port)) = variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT"))
        else {
            return Ok(None);
        };
        if !account.join("token").exists() {
            return Ok(None);
        }
        // An IPv6 address stands in brackets.
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Self::at(format!("https://{host}:{port}"), account).map(Some)
    }

    /// One at an address, with the account (`ca.crt`, `token`) in a directory.
    ///
    /// # Errors
    /// Where the certificates are not readable.
    pub fn at(address: String, account: &Path) -> Result<Self, AgentError> {
        let authority = account.join("ca.crt");
        let unreadable = |error: &dyn std::error::Error| {
            AgentError::io("read the certificates", &authority)(io::Error::other(error.to_string()))
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&authority).map_err(|error| unreadable(&error))? {
            roots
                .add(certificate.map_err(|error| unreadable(&error))?)
                .map_err(|error| unreadable(&error))?;
        }
        let config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| unreadable(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, address, token: account.join("token") })
    }

    /// Makes an event.
    ///
    /// # Errors
    /// Where the server is not reached or refuses; with its words.
    pub(super) async fn create(&self, namespace: &str, event: &Value) -> Result<(), AgentError> {
        let uri = format!("{}/api/v1/namespaces/{namespace}/events", self.address);
        let failed = |source: io::Error| AgentError::io("post an event to", Path::new(&uri))(source);
        let token = fs::read_to_string(&self.token).map_err(AgentError::io("read", &self.token))?;
        let request = Request::post(&uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Full::from(event.to_string()))
            .map_err(|error| failed(io::Error::other(error)))?;
        let call = async {
            let answer = self.client.request(request).await.map_err(io::Error::other)?;
            let status = answer.status();
            if status.is_success() {
                return Ok(());
            }
            let body =
                Limited::new(answer.into_body(), MOST_BYTES).collect().await.map_err(io::Error::other)?;
            let words: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
            let words = words["message"].as_str().unwrap_or("it says nothing more").to_owned();
            Err(io::Error::other(format!("{status}: {words}")))
        };
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        tokio::time::timeout(TAKEN_WITHIN, call).await.unwrap_or_else(late).map_err(failed)
    }
}

/// An event of the core API on a pod. Pure.
pub(super) fn event(
    pod: &Pod,
    node: &str,
    tenant: TenantId,
    told: &Told,
    times: u32,
    now: SystemTime,
) -> Value {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = rfc3339(i64::try_from(seconds).unwrap_or(i64::MAX));
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{}.tarbox-", pod.name), "namespace": pod.namespace },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid,
        },
        "reason": told.reason.name(),
        "message": format!("volume {tenant}: {}", told.message),
        "type": told.reason.kind(),
        "source": { "component": "tarbox.csi.io", "host": node },
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": times,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::{super::told::Reason, *};

    fn pod() -> Pod {
        Pod::new("u-1", "team", "agent-0").expect("words")
    }

    fn told() -> Told {
        Told { reason: Reason::QuotaReached, message: "3 operations were refused".into() }
    }

    #[test]
    fn an_event_names_the_pod_and_says_what_when_and_how_often() {
        let tenant = TenantId::random();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_306_696);
        let event = event(&pod(), "node-1", tenant, &told(), 4, at);
        assert_eq!(event["involvedObject"]["uid"], "u-1");
        assert_eq!(event["metadata"]["namespace"], "team");
        assert_eq!((&event["reason"], &event["type"]), (&json!("QuotaReached"), &json!("Warning")));
        assert_eq!((&event["count"], &event["lastTimestamp"]), (&json!(4), &json!("2026-11-22T00:18:16Z")));
        let message = event["message"].as_str().expect("a message");
        assert!(message.contains(&tenant.to_string()) && message.contains("3 operations"), "{message}");
    }

    /// Answers one call per answer; gives back what was asked.
    async fn served(
        listener: TcpListener,
        acceptor: TlsAcceptor,
        answers: Vec<(&'static str, &'static str)>,
    ) -> Vec<String> {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut stream = acceptor.accept(stream).await.expect("TLS");
            let (mut text, mut piece) = (String::new(), [0; 4096]);
            // The body is one JSON object, and the last thing.
            while !text.ends_with('}') {
                let count = stream.read(&mut piece).await.expect("read");
                text.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
            }
            let answer = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("write");
            stream.shutdown().await.expect("shut");
            asked.push(text);
        }
        asked
    }

    #[tokio::test]
    async fn events_are_posted_as_the_account_of_the_moment_and_a_refusal_is_told() {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let account = tempfile::tempdir().expect("a directory");
        fs::write(account.path().join("ca.crt"), made.cert.pem()).expect("write");
        fs::write(account.path().join("token"), "first\n").expect("write");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("https://{}", listener.local_addr().expect("an address"));
        let refusal = r#"{"kind":"Status","message":"events is forbidden"}"#;
        let answers = vec![("201 Created", "{}"), ("403 Forbidden", refusal)];
        let asked = tokio::spawn(served(listener, TlsAcceptor::from(Arc::new(config)), answers));

        let server = ApiServer::at(address, account.path()).expect("an API server");
        let event = event(&pod(), "node-1", TenantId::random(), &told(), 1, SystemTime::now());
        server.create("team", &event).await.expect("taken");
        fs::write(account.path().join("token"), "second\n").expect("renewed");
        let refused = server.create("team", &event).await.expect_err("refused").report();
        assert!(refused.contains("403") && refused.contains("events is forbidden"), "{refused}");

        let asked = asked.await.expect("served");
        assert!(asked[0].starts_with("POST /api/v1/namespaces/team/events HTTP/1.1"), "{}", asked[0]);
        for (text, token) in asked.iter().zip(["Bearer first\r\n", "Bearer second\r\n"]) {
            assert!(text.contains(token) && text.contains("\"QuotaReached\""), "{text}");
        }
    }

    #[test]
    fn without_an_account_that_can_be_read_nothing_is_posted() {
        let account = tempfile::tempdir().expect("a directory");
        let missing =
            ApiServer::at("https://127.0.0.1:1".into(), account.path()).expect_err("no certificates");
        assert!(missing.report().contains("ca.crt"), "{}", missing.report());
    }
}
