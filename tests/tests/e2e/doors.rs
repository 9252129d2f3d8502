//! The doors to the outside: tokens and their roles on the port.

use stockade_tests::{Daemon, Options, curl, eventually};

/// `stockade token`: the text and the lines for stockade.toml.
async fn token(daemon: &Daemon, name: &str, role: &str) -> (String, String) {
    let (code, out, err) = daemon.cli(&["token", name, "--role", role]).await;
    assert_eq!(code, 0, "{err}");
    let (text, toml) = out.split_once("\n\n").expect("token and lines");
    (text.to_owned(), toml.to_owned())
}

#[tokio::test]
async fn each_token_opens_what_its_role_says() {
    let maker = Options::new().start().await;
    let (read, read_toml) = token(&maker, "grafana", "read").await;
    let (call, call_toml) = token(&maker, "server", "call").await;
    let (admin, admin_toml) = token(&maker, "operator", "admin").await;
    assert!(!read_toml.contains(&read), "only the digest is kept");
    let (code, _, err) = maker.cli(&["token", "bad name", "--role", "read"]).await;
    assert!(code == 2 && err.contains("is not a name"), "{err}");
    maker.stop().await;

    let config = format!("{read_toml}\n{call_toml}\n{admin_toml}\n");
    let daemon = Options::new().port().config(&config).start().await;
    let address = daemon.address().await;
    let url = |path: &str| format!("http://{}{path}", address.trim_start_matches("http://"));
    let health = url("/v1/plugins");
    let run = url("/v1/plugins/good/tools/ping/run");
    let restart = url("/v1/plugins/good/restart");
    let body = ["--json", "{\"args\": {\"text\": \"x\"}}"];
    let header = |token: &str| format!("authorization: Bearer {token}");

    let (status, answer) = curl(&["-i", &health]).await;
    assert_eq!(status, 401, "{answer}");
    assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
    assert!(answer.contains("Authorization: Bearer TOKEN"), "{answer}");
    assert_eq!(curl(&["-H", &header("sk_wrong"), &health]).await.0, 401);
    assert_eq!(curl(&["-H", "authorization: Basic eDp5", &health]).await.0, 401);
    for (token, role, allowed) in [(&read, "read", 1), (&call, "call", 2), (&admin, "admin", 3)] {
        let header = header(token);
        assert_eq!(curl(&["-H", &header, &health]).await.0, 200, "{role}");
        let (status, answer) = curl(&[&["-H", &header], &body[..], &[&run]].concat()).await;
        assert_eq!(status, if allowed >= 2 { 200 } else { 403 }, "{role}: {answer}");
        let (status, answer) = curl(&["-X", "POST", "-H", &header, &restart]).await;
        assert_eq!(status, if allowed >= 3 { 202 } else { 403 }, "{role}: {answer}");
        if allowed == 1 {
            assert!(
                answer.contains("token grafana has the role read; this needs admin"),
                "{answer}"
            );
        }
    }
    // Who did it is in the log.
    eventually("the log", || async {
        daemon.log().contains("restart asked by token operator").then_some(())
    })
    .await;
    // The socket needs none.
    daemon.serving("good").await;
    let (code, _, err) = daemon.cli(&["list"]).await;
    assert_eq!(code, 0, "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn grpc_on_the_port_asks_for_tokens_too() {
    use stockade_proto::v1::{ListPluginsRequest, plugins_client::PluginsClient};
    let maker = Options::new().start().await;
    let (read, toml) = token(&maker, "watcher", "read").await;
    maker.stop().await;
    let daemon = Options::new().port().config(&toml).start().await;
    let address = daemon.address().await;
    let address = format!("http://{}", address.trim_start_matches("http://"));
    let channel =
        tonic::transport::Endpoint::from_shared(address).expect("address").connect().await;
    let channel = channel.expect("connect");
    let mut client = PluginsClient::new(channel.clone());
    let refused = client.list_plugins(ListPluginsRequest {}).await.expect_err("no token");
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let bearer: tonic::metadata::MetadataValue<_> =
        format!("Bearer {read}").parse().expect("header");
    let mut request = tonic::Request::new(ListPluginsRequest {});
    request.metadata_mut().insert("authorization", bearer.clone());
    assert_eq!(client.list_plugins(request).await.expect("list").into_inner().plugins.len(), 1);
    let mut tools = stockade_proto::v1::tools_client::ToolsClient::new(channel);
    let mut request = tonic::Request::new(stockade_proto::v1::CallRequest::default());
    request.metadata_mut().insert("authorization", bearer);
    let refused = tools.call(request).await.expect_err("the role is read");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    daemon.stop().await;
}

/// An authority, a server's and a client's certificate, made by openssl.
fn certificates(folder: &std::path::Path) {
    let script = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
for name in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
  printf 'subjectAltName=IP:127.0.0.1,DNS:localhost' > $name.ext
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out $name.pem -days 2 -extfile $name.ext
done";
    let output = std::process::Command::new("sh")
        .args(["-ec", script])
        .current_dir(folder)
        .output()
        .expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn an_address_for_others_needs_tls_and_somebody_to_know() {
    let folder = tempfile::tempdir().expect("folder");
    certificates(folder.path());
    stockade_tests::give_to_test_user(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let maker = Options::new().start().await;
    let (call, toml) = token(&maker, "server", "call").await;
    // What is missing is told, all of it.
    let (code, _, err) = maker.cli(&["serve", "--listen", "0.0.0.0:0"]).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("needs TLS (tls_cert and tls_key), and tokens"), "{err}");
    maker.stop().await;

    let tls = format!("tls_cert = {:?}\ntls_key = {:?}\n", file("server.pem"), file("server.key"));
    let daemon = Options::new().listen("0.0.0.0:0").config(&tls).config(&toml).start().await;
    let port = daemon.address().await.rsplit_once(':').expect("port").1.to_owned();
    let health = format!("https://127.0.0.1:{port}/v1/plugins");
    let ca = file("ca.pem");
    let bearer = format!("authorization: Bearer {call}");
    for version in ["--http1.1", "--http2"] {
        let (status, answer) = curl(&["--cacert", &ca, version, "-H", &bearer, &health]).await;
        assert_eq!(status, 200, "{version}: {answer}");
    }
    assert_eq!(curl(&["--cacert", &ca, &health]).await.0, 401);
    // Without TLS there is no answer at all.
    assert_eq!(curl(&["-H", &bearer, &health.replace("https", "http")]).await.0, 0);
    daemon.stop().await;

    // Client certificates instead of tokens.
    let clients = format!("{tls}tls_client_ca = {ca:?}\n");
    let daemon = Options::new().listen("0.0.0.0:0").config(&clients).start().await;
    let port = daemon.address().await.rsplit_once(':').expect("port").1.to_owned();
    let health = format!("https://127.0.0.1:{port}/v1/plugins");
    let own = ["--cert", &file("client.pem"), "--key", &file("client.key")];
    assert_eq!(curl(&[&["--cacert", ca.as_str()], &own[..], &[&health]].concat()).await.0, 200);
    assert_eq!(curl(&["--cacert", &ca, &health]).await.0, 0, "no certificate, no answer");
    daemon.stop().await;

    // A file that is no certificate is named.
    let bad = folder.path().join("bad.toml");
    let text = format!("tls_cert = {:?}\ntls_key = {:?}\n", file("ca.key"), file("server.key"));
    std::fs::write(&bad, text).expect("bad.toml");
    let daemon = Options::new().start().await;
    let state = folder.path().join("state").display().to_string();
    let socket = folder.path().join("s.sock").display().to_string();
    let plugins = folder.path().display().to_string();
    let (code, _, err) = daemon
        .cli(&[
            "serve",
            "--config",
            &bad.display().to_string(),
            "--state-dir",
            &state,
            "--socket",
            &socket,
            "--plugins",
            &plugins,
            "--listen",
            "127.0.0.1:0",
        ])
        .await;
    assert!(code != 0 && err.contains("tls_cert = ") && err.contains("ca.key"), "{code} {err}");
    daemon.stop().await;
}
