//! Requests that look small, or like something else than they are.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use stockade_proto::limits;
use stockade_proto::v1::{
    EmitEventRequest, ListExtensionsRequest, SetDocumentRequest, SetValueRequest,
    SetWorkspaceRequest, WatchPluginsRequest, data_client::DataClient,
    extensions_client::ExtensionsClient, hosting_client::HostingClient,
    plugins_client::PluginsClient, workspaces_client::WorkspacesClient,
};
use stockade_tests::{Http, Options};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::scene::{BUFFERED, MIB, QUICK, attacked, under_attack};

const RUN: &str = "/v1/plugins/other/tools/nothing/run";

/// Names of plugins that clients follow are refused when they can be none, and else paid
/// for.
#[tokio::test]
async fn names_that_are_followed_are_bounded() {
    let daemon = attacked(Options::new().config(BUFFERED)).await;
    let mut health = HealthClient::new(daemon.channel());
    for bytes in [200, 100_000, 4_000_000] {
        let request = HealthCheckRequest { service: "x".repeat(bytes) };
        let refused = health.check(request.clone()).await.expect_err("no name");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        assert!(refused.message().len() < 200, "{refused}");
        let refused = health.watch(request).await.expect_err("no name");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    }
    under_attack(&daemon, 320 * MIB, async {
        let mut held = Vec::new();
        'connections: for _ in 0..6 {
            let mut client = PluginsClient::new(daemon.apart().await.channel());
            for _ in 0..200 {
                let names = (0..1000).map(|n| format!("{n}{}", "x".repeat(120))).collect();
                match client.watch_plugins(WatchPluginsRequest { names }).await {
                    Ok(stream) => held.push(stream),
                    Err(refused) => {
                        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
                        // As of a call that is refused.
                        let details = refused.get_error_details();
                        let reason = details.error_info().map(|info| info.reason.as_str());
                        assert_eq!(reason, Some("Overloaded"), "{refused}");
                        assert!(details.retry_info().is_some(), "{refused}");
                        break 'connections;
                    }
                }
            }
        }
        held.len() as u64
    })
    .await;
    daemon.stop().await;
}

/// Values that operators list are not read for it, however much they would become.
#[tokio::test]
async fn values_are_listed_as_they_are() {
    let more = "[permissions]\nrequest = [\"kv:write\"]";
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", more)).await;
    daemon.serving("x").await;
    let args = json!({"kind": "set", "of": "nests", "n": 8, "bytes": 600_000});
    assert_eq!(daemon.call("x", "flood", args).await.unwrap(), 8);
    under_attack(&daemon, 320 * MIB, async {
        let ask = async || {
            let mut http = Http::unix(&daemon.socket).await.expect("connect");
            let reply = http.get("/v1/kv/x?values=true").await.expect("reply");
            match reply.status {
                200 => {
                    let list = reply.json();
                    let values = list["values"].as_array().expect("values");
                    assert_eq!((list["plugin"].as_str(), values.len()), (Some("x"), 8));
                    assert_eq!(values[7]["key"], "k7");
                    assert_eq!(values[7]["value"][0], json!([0]));
                    1
                }
                status => {
                    assert_eq!(status, 503);
                    0
                }
            }
        };
        futures_util::future::join_all((0..4).map(|_| ask())).await.into_iter().sum()
    })
    .await;
    daemon.stop().await;
}

/// Only the run of a tool takes what a call may bring.
#[tokio::test]
async fn what_ends_like_a_call_is_none() {
    let daemon = attacked(Options::new()).await;
    for (method, path) in [
        ("POST", "/v1/workspaces/w/run"),
        ("PUT", "/v1/kv/other/key/run"),
        ("POST", "/v1/plugins/other/tools/x/y/run"),
        ("POST", "/run"),
    ] {
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        http.head(method, path, "application/json", 3 << 20).await.expect("head");
        assert_eq!(http.reply().await.expect("reply").status, 413, "{path}");
    }
    let mut http = Http::unix(&daemon.socket).await.expect("connect");
    let body = json!({"args": {"text": "x".repeat(3 << 20)}}).to_string();
    let reply = http.post(RUN, body.as_bytes()).await.expect("reply");
    assert_ne!(reply.status, 413);
    daemon.stop().await;
}

/// A body that comes together with its head is read as one that comes after it.
#[tokio::test]
async fn a_small_multipart_body_in_one_piece_is_read() {
    let daemon = attacked(Options::new()).await;
    let part = |name: &str, text: &str| {
        format!("--b\r\ncontent-disposition: form-data; name={name}\r\n\r\n{text}\r\n")
    };
    let ask = async |parts: &[String]| {
        let body = format!("{}--b--\r\n", parts.concat());
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        let head = format!(
            "POST {RUN} HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        http.write(format!("{head}{body}").as_bytes()).await.expect("write");
        let reply = http.reply().await.expect("reply");
        (reply.status, String::from_utf8_lossy(&reply.body).into_owned())
    };
    for _ in 0..20 {
        let (status, text) = ask(&[part("args", "{}")]).await;
        // It came as far as the plugin, which has no such tool.
        assert!(text.contains("nothing") && status == 404, "{status} {text}");
    }
    for refused in [
        vec![part("args", "{}"), part("args", "{}")],
        vec![part("a", "1"), part("a", "2")],
        vec!["--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n".to_owned()],
    ] {
        let (status, text) = ask(&refused).await;
        assert_eq!(status, 422, "{text}");
    }
    daemon.stop().await;
}

/// Fields of a form are texts until somebody reads them: what they become then is bounded
/// and paid for, and nobody waits for it.
#[tokio::test]
async fn fields_of_forms_are_weighed() {
    let more = format!("concurrency = 4\n{QUICK}");
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &more)).await;
    daemon.serving("x").await;
    let form = |field: &[u8]| {
        let head = b"--b\r\ncontent-disposition: form-data; name=n\r\n\r\n";
        [&head[..], field, b"\r\n--b--\r\n"].concat()
    };
    let send = async |field: &[u8]| {
        let body = form(field);
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        let (url, kind) = ("/v1/plugins/x/tools/wait/run", "multipart/form-data; boundary=b");
        http.head("POST", url, kind, body.len()).await.expect("head");
        http.write(&body).await.expect("write");
        http.reply().await.expect("reply").status
    };
    let numbers = [b"[", &b"0,".repeat(10 << 20)[..], b"0]"].concat();
    let escapes = vec![1; 12 << 20];
    under_attack(&daemon, 320 * MIB, async {
        for field in [&numbers, &escapes] {
            for _ in 0..3 {
                let status = send(field).await;
                assert!([413, 503, 422].contains(&status), "{status}");
            }
        }
        6
    })
    .await;
    assert_eq!(send(b"1").await, 200);
    daemon.stop().await;
}

/// Lists that many plugins and deaths have made long are made where nobody waits.
#[tokio::test]
async fn long_lists_are_made_aside() {
    let more = format!(
        "args = [\"--conditions\", \"250\"]\n{QUICK}\n[permissions]\nrequest = \
         [\"behavior:extend_conditions\"]"
    );
    let names = ["a", "b", "c"];
    let options = names.iter().fold(Options::new(), |options, name| options.rogue(name, &more));
    let daemon = attacked(options.config(BUFFERED)).await;
    for name in names {
        daemon.serving(name).await;
    }
    under_attack(&daemon, 256 * MIB, async {
        let mut listed = 0;
        for _ in 0..8 {
            let both = (0..4).map(|n| {
                let (client, socket) = (daemon.client(), daemon.socket.clone());
                async move {
                    if n % 2 == 0 {
                        let mut http = Http::unix(&socket).await.expect("connect");
                        let reply = http.get("/v1/extensions").await.expect("reply");
                        return if reply.status == 200 { reply.body.len() } else { 0 };
                    }
                    let mut extensions =
                        ExtensionsClient::new(client.channel()).max_decoding_message_size(64 << 20);
                    let list = extensions.list_extensions(ListExtensionsRequest {}).await;
                    list.map_or(0, |list| list.into_inner().conditions.len())
                }
            });
            let all = futures_util::future::join_all(both).await;
            listed += all.into_iter().filter(|size| *size > 700).count();
        }
        assert!(listed >= 8, "{listed}");
        listed as u64
    })
    .await;
    daemon.stop().await;
}

/// All workspaces, whose documents would be gigabytes if they were read for it.
#[tokio::test]
async fn workspaces_are_listed_as_they_are() {
    let daemon = attacked(Options::new().config(BUFFERED)).await;
    let mut workspaces = WorkspacesClient::new(daemon.channel());
    let document = format!("{{\"notes\":[{}0]}}", "[],".repeat(340_000));
    for n in 0..40 {
        let document = document.clone().into();
        let set = SetWorkspaceRequest { name: format!("w{n}"), document };
        workspaces.set_workspace(set).await.expect("set");
    }
    under_attack(&daemon, 320 * MIB, async {
        let mut listed = 0;
        for _ in 0..2 {
            let mut http = Http::unix(&daemon.socket).await.expect("connect");
            let reply = http.get("/v1/workspaces").await.expect("reply");
            assert_eq!(reply.status, 200, "{:?}", String::from_utf8_lossy(&reply.body).get(..200));
            let (bytes, all) = (reply.size as usize, 40 * document.len());
            assert!(bytes > all, "{bytes} of {all}");
            listed += 1;
        }
        listed
    })
    .await;
    daemon.stop().await;
}

/// Events and documents of operators are checked and written where nobody waits for it.
#[tokio::test]
async fn what_operators_send_is_read_aside() {
    let daemon = attacked(Options::new().config(BUFFERED)).await;
    let large = format!("[{}0]", "[],".repeat(600_000));
    let event = format!("{{\"name\":\"host:x\",\"payload\":{large}}}");
    under_attack(&daemon, 320 * MIB, async {
        let mut sent = 0;
        for _ in 0..3 {
            let all = (0..6).map(|n| {
                let (channel, socket) = (daemon.client().channel(), daemon.socket.clone());
                let (large, event) = (large.clone(), event.clone());
                async move {
                    let workspace = String::new();
                    match n % 3 {
                        0 => {
                            let mut http = Http::unix(&socket).await.expect("connect");
                            let sent = http.post("/v1/plugin-events", event.as_bytes()).await;
                            sent.is_ok_and(|reply| [200, 422].contains(&reply.status))
                        }
                        1 => {
                            let payload = large.into();
                            let event = EmitEventRequest { name: "x".into(), payload, workspace };
                            HostingClient::new(channel).emit_event(event).await.is_ok()
                        }
                        _ => {
                            let document = format!("{{\"flags\":{large}}}").into();
                            let entity = "session/1".into();
                            let set = SetDocumentRequest { workspace, entity, document };
                            let set = DataClient::new(channel).set_document(set).await;
                            set.is_err_and(|refused| refused.message().contains("parts"))
                        }
                    }
                }
            });
            let all = futures_util::future::join_all(all).await;
            sent += all.into_iter().filter(|done| *done).count();
        }
        assert!(sent >= 12, "{sent}");
        sent as u64
    })
    .await;
    daemon.stop().await;
}

/// Clients that follow, however many, leave operators their questions and actions.
#[tokio::test]
async fn followers_on_the_socket_keep_no_operator_out() {
    let daemon = attacked(Options::new()).await;
    let mut following = Vec::new();
    for _ in 0..limits::SOCKET_CONNECTIONS {
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        http.write(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("asked");
        following.push(http);
    }
    // The last one has been answered, and so have all.
    let mut followed = 0;
    for http in following.iter_mut().rev().take(20) {
        followed += u32::from(http.answer_head().await.is_ok_and(|head| head.contains(" 200 ")));
    }
    assert!(followed > 0, "nobody follows");
    for command in [&["list"][..], &["disable", "other"], &["enable", "other"]] {
        let (code, _, error) = daemon.cli(command).await;
        assert_eq!(code, 0, "{command:?}: {error}");
    }
    let mut http = Http::unix(&daemon.socket).await.expect("connect");
    let refused = http.get("/v1/events").await.expect("refused");
    assert_eq!(refused.status, 503);
    daemon.stop().await;
}

/// A workspace's name that cannot be read is not no workspace, and what is packed twice is
/// not what it is packed in.
#[tokio::test]
async fn headers_that_cannot_be_read_are_refused() {
    let daemon = attacked(Options::new()).await;
    for (lines, status) in [
        (&b"stockade-workspace: bl\xfce\r\n"[..], 422),
        (b"stockade-workspace:\r\n", 422),
        (b"stockade-workspace: a\r\nstockade-workspace: b\r\n", 422),
        (b"content-encoding: identity\r\ncontent-encoding: gzip\r\n", 415),
    ] {
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        let head = format!("POST {RUN} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
        let rest = b"content-length: 2\r\n\r\n{}";
        http.write(&[head.as_bytes(), lines, rest].concat()).await.expect("write");
        assert_eq!(http.reply().await.expect("reply").status, status, "{lines:?}");
    }
    daemon.stop().await;
}

/// HTTP/2 is known by its first bytes, however they come; floods of frames end it.
#[tokio::test]
async fn a_preface_in_pieces_is_no_way_around() {
    let daemon = attacked(Options::new()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0u8, 0, 0, 4, 0, 0, 0, 0, 0];
    let ping = [0u8, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let pings = ping.repeat(4000);
    for first in [1, 2, 3, 24] {
        let mut http = Http::unix(&daemon.socket).await.expect("connect");
        http.write(&preface[..first]).await.expect("write");
        tokio::time::sleep(Duration::from_millis(100)).await;
        http.write(&[&preface[first..], &settings].concat()).await.expect("write");
        let mut sent = 0;
        while sent < 60 * MIB {
            // Its answers are taken, so that it is the daemon who ends it.
            http.drain(Duration::from_millis(1)).await;
            let write = http.write(&pings);
            match tokio::time::timeout(Duration::from_secs(5), write).await {
                Ok(Ok(())) => sent += pings.len() as u64,
                _ => break,
            }
        }
        assert!(sent < 60 * MIB, "{first}: {sent} bytes of pings were taken");
    }
    daemon.stop().await;
}

/// More changes at once on one connection than it may have unread: all of them are made,
/// and nobody is told that it was slow.
#[tokio::test]
async fn many_changes_at_once_on_one_connection_are_all_made() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 192 * MIB, async {
        let client = daemon.apart().await;
        let value = Bytes::from(format!("\"{}\"", "x".repeat(100_000)));
        let all = (0..250).map(|n| {
            let (mut data, value) = (DataClient::new(client.channel()), value.clone());
            let (plugin, key) = ("other".to_owned(), format!("k{n}"));
            let set = SetValueRequest { plugin, key, data: value, ..SetValueRequest::default() };
            async move { data.set_value(set).await.map(drop) }
        });
        let made = futures_util::future::join_all(all);
        let made = tokio::time::timeout(limits::BODY_PAUSE, made).await;
        made.expect("nothing waits for what never comes").into_iter().for_each(Result::unwrap);
        250
    })
    .await;
    daemon.stop().await;
}
