//! The doors to the outside: tokens and their roles on the port.

use stockade_tests::{Daemon, Options, eventually};
use tokio::process::Command;

/// `stockade token`: the text and the lines for stockade.toml.
async fn token(daemon: &Daemon, name: &str, role: &str) -> (String, String) {
    let (code, out, err) = daemon.cli(&["token", name, "--role", role]).await;
    assert_eq!(code, 0, "{err}");
    let (text, toml) = out.split_once("\n\n").expect("token and lines");
    (text.to_owned(), toml.to_owned())
}

/// Status and body of a request by the port.
async fn curl(args: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-s", "-m", "20", "-i", "-w", "\n%{http_code}"])
        .args(args)
        .output()
        .await
        .expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("status");
    (status.parse().expect("status"), body.to_owned())
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

    let (status, answer) = curl(&[&health]).await;
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
