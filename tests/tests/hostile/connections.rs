//! Clients that send nothing, or not all, or do not read.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stockade_proto::v1::{CallRequest, WatchPluginsRequest, plugins_client::PluginsClient};
use stockade_tests::{Http, Options, curl, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::scene::{BUFFERED, MIB, QUICK, a_while, attacked, large_results, timed, under_attack};

/// More descriptors for this process, which plays so many clients.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("descriptors");
}

/// Connects so often, half of them with the beginning of a request.
async fn silent(count: usize, connect: impl AsyncFn() -> std::io::Result<Http>) -> Vec<Http> {
    let mut held = Vec::new();
    for n in 0..count {
        let patience = Duration::from_millis(500);
        let Ok(Ok(mut http)) = tokio::time::timeout(patience, connect()).await else { continue };
        if n % 2 == 1 {
            let _ = http.write(b"GET /v1/plugins HTTP/1.1\r\nhost: ").await;
        }
        held.push(http);
    }
    held
}

/// Finding 6: 1,100 connections to the port that send nothing. The socket answers
/// as ever, and so does health on the port.
#[tokio::test]
async fn silent_connections_shut_nobody_out() {
    raise_descriptor_limit();
    let daemon = attacked(Options::new().port()).await;
    let address = daemon.address().await;
    under_attack(&daemon, 64 * MIB, async {
        let held = silent(1100, async || Http::tcp(&address).await).await;
        assert!(held.len() > 1000, "{} connections", held.len());
        let (reply, took) = timed(eventually("health on the port", || async {
            let asked = async { Http::tcp(&address).await?.get("/v1/plugins").await };
            let asked = tokio::time::timeout(Duration::from_secs(5), asked).await;
            asked.ok()?.ok()
        }))
        .await;
        assert_eq!(reply.status, 200);
        assert!(
            took < Duration::from_secs(8),
            "before they are dropped for their silence: {took:?}"
        );
        a_while().await;
        held.len() as u64
    })
    .await;
    // And when they are gone all is as before.
    let body = br#"{"args":{"text":"x"}}"#;
    let url = "/v1/plugins/good/tools/ping/run";
    eventually("a call by the port", || async {
        let reply = Http::tcp(&address).await.ok()?.post(url, body).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// The beginning of a connection of HTTP/2.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Finding 6: a connection that says nothing is ended, as is one that does not
/// come to the end of its request's head.
#[tokio::test]
async fn silent_connections_are_ended() {
    let daemon = Options::new().port().start().await;
    let address = daemon.address().await;
    let mut held = silent(4, async || Http::tcp(&address).await).await;
    held.extend(silent(4, async || Http::unix(&daemon.socket).await).await);
    assert_eq!(held.len(), 8);
    // Over HTTP/2: a frame without its last byte, and headers that go on.
    let unfinished = [&[0, 0, 100, 1, 4, 0, 0, 0, 1][..], &[0; 99]].concat();
    let goes_on = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
    for begun in [&unfinished[..], &goes_on] {
        for _ in 0..2 {
            let mut http = Http::tcp(&address).await.expect("connection");
            http.write(&[HTTP2, begun].concat()).await.expect("write");
            held.push(http);
        }
    }
    let ends = held.iter_mut().map(|http| async {
        // Until the end of the connection; an answer may come before it.
        while http.answer_head().await.is_ok() {}
    });
    let ends = tokio::time::timeout(Duration::from_secs(30), join_all(ends)).await;
    ends.expect("all are ended within half a minute");
    daemon.stop().await;
}

/// Connections of the port whose clients have sent their last byte.
fn half_closed(address: &str) -> usize {
    let (_, port) = address.rsplit_once(':').expect("a port");
    let port = format!(":{:04X}", port.parse::<u16>().expect("a port"));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns.filter(|columns| columns[1].ends_with(&port) && columns[3] == "08").count()
}

/// Clients that follow events and have gone, behind bytes that nobody will ever read: they
/// are found out though nothing happens that they could be told.
#[tokio::test]
async fn followers_that_cannot_be_heard_are_found_out() {
    let daemon = Options::new().port().start().await;
    let address = daemon.address().await;
    // Of a little behind the request the end is seen at once, of much only when something
    // is written.
    for behind in [4 << 10, 60 << 10] {
        for _ in 0..20 {
            let mut http = Http::tcp(&address).await.expect("connect");
            let head = b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
            http.write(&[&head[..], &vec![0; behind]].concat()).await.expect("write");
            http.answer_head().await.expect("answer");
        }
        if behind > 16 << 10 {
            assert_eq!(half_closed(&address), 20);
        }
        eventually("they are found out", || async { (half_closed(&address) == 0).then_some(()) })
            .await;
    }
    daemon.stop().await;
}

/// Finding 6, on the unix socket: even there one more connection gets in.
#[tokio::test]
async fn silent_connections_on_the_socket_shut_nobody_out() {
    raise_descriptor_limit();
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 64 * MIB, async {
        let held = silent(500, async || Http::unix(&daemon.socket).await).await;
        a_while().await;
        held.len() as u64
    })
    .await;
    daemon.stop().await;
}

/// Sends frames of a type that nobody knows until the connection is ended; false when
/// the time was over first.
async fn chatter(address: &str, end: Instant) -> bool {
    let Ok(mut http) = Http::tcp(address).await else { return false };
    let frames = [0, 0, 0, 0xfe, 0, 0, 0, 0, 0].repeat(1600);
    let mut sent = http.write(HTTP2).await;
    while sent.is_ok() && Instant::now() < end {
        // 700 KB a second.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let write = tokio::time::timeout(Duration::from_secs(5), http.write(&frames)).await;
        sent = write.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    }
    sent.is_err()
}

/// Sixteen connections with 78,000 frames a second each that ask for nothing.
#[tokio::test]
async fn frames_that_ask_for_nothing_end_their_connection() {
    let daemon = attacked(Options::new().port()).await;
    let address = daemon.address().await;
    under_attack(&daemon, 64 * MIB, async {
        let end = Instant::now() + Duration::from_secs(8);
        let again = join_all((0..16).map(async |_| {
            let mut ended = 0;
            while Instant::now() < end {
                ended += u64::from(chatter(&address, end).await);
            }
            ended
        }));
        let ended = again.await.iter().sum();
        assert!(ended >= 16, "{ended} connections were ended");
        ended
    })
    .await;
    daemon.stop().await;
}

/// Eighty connections with texts that take long to read: each text is read in its
/// connection's turn, and nobody is refused for the others.
#[tokio::test]
async fn large_texts_of_many_shut_nobody_out() {
    let daemon = attacked(Options::new().port()).await;
    let address = daemon.address().await;
    let url = "/v1/conditions/evaluate";
    let text = |context: String| {
        format!("{{\"condition_id\":\"nope\",\"context\":{{\"x\":{context}}}}}").into_bytes()
    };
    let slow = text(format!("[{}0]", "[[],{}],".repeat(100_000)));
    let large = text(format!("\"{}\"", "x".repeat(70_000)));
    under_attack(&daemon, 384 * MIB, async {
        let end = Instant::now() + Duration::from_secs(8);
        let attackers = join_all((0..80).map(async |_| {
            let mut asked = 0;
            let Ok(mut http) = Http::tcp(&address).await else { return 0 };
            while Instant::now() < end && http.post(url, &slow).await.is_ok() {
                asked += 1;
            }
            asked
        }));
        let victim = async {
            let mut http = Http::tcp(&address).await.expect("connect");
            let mut answered = 0;
            while Instant::now() < end {
                let reply = http.post(url, &large).await.expect("answer");
                assert_eq!(reply.status, 200, "{:?}", reply.json());
                answered += 1;
            }
            assert!(answered > 0);
        };
        let (asked, ()) = tokio::join!(attackers, victim);
        asked.iter().sum()
    })
    .await;
    daemon.stop().await;
}

/// Sends most of a body of 60 MB and stops; how much it got rid of.
async fn most_of_a_body(http: &mut Http, url: &str) -> u64 {
    let block = vec![0; 64 << 10];
    if http.head("POST", url, "image/jpeg", 60_000_000).await.is_err() {
        return 0;
    }
    let mut sent = 0;
    while sent < 45_000_000 {
        let write = tokio::time::timeout(Duration::from_secs(2), http.write(&block)).await;
        match write {
            Ok(Ok(())) => sent += block.len() as u64,
            // Refused, or not read any more.
            _ => break,
        }
    }
    sent
}

/// Finding 9: 40 clients that send most of a large body and stop.
#[tokio::test]
async fn bodies_that_stop_take_no_more_than_the_budget() {
    let daemon = attacked(Options::new().port().config(BUFFERED)).await;
    let address = daemon.address().await;
    let url = "/v1/plugins/good/tools/ping/run";
    under_attack(&daemon, 256 * MIB + 96 * MIB, async {
        let mut clients = Vec::new();
        for _ in 0..40 {
            clients.push(Http::tcp(&address).await.expect("connect"));
        }
        let sent: u64 =
            join_all(clients.iter_mut().map(|http| most_of_a_body(http, url))).await.iter().sum();
        a_while().await;
        sent
    })
    .await;
    // They have gone, and with them what they took.
    let body = format!("{{\"args\":{{\"text\":\"{}\"}}}}", "x".repeat(20_000_000));
    eventually("there is room again", || async {
        let reply = Http::tcp(&address).await.ok()?.post(url, body.as_bytes()).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// Finding 9: 1,000 calls of 10 MiB each over one stream that nobody reads.
#[tokio::test]
async fn answers_that_nobody_reads_take_no_more_than_the_budget() {
    let more = format!("concurrency = 8\nqueue = {{ size = 1000, timeout = \"60s\" }}\n{QUICK}");
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 256 * MIB + 128 * MIB, async {
        let client = daemon.apart().await;
        let requests = large_results(1000);
        let answers = client.tools().calls(requests).await.expect("calls");
        let ran = |health: &stockade_proto::v1::PluginHealth| health.success_count > 0;
        daemon.until("x", ran).await;
        a_while().await;
        a_while().await;
        let health = daemon.health("x").await;
        drop(answers);
        health.success_count
    })
    .await;
    daemon.until("x", |health| health.in_flight == 0 && health.queued == 0).await;
    daemon.call("x", "pid", serde_json::json!({})).await.unwrap();
    daemon.stop().await;
}

/// Finding 15: 1,000 watchers of 50 plugins, most of whom do not read.
#[tokio::test]
async fn watchers_share_one_picture() {
    let absent = "[requires]\ncommands = [\"no-such-command\"]";
    let options =
        (0..50).fold(Options::new(), |options, n| options.rogue(&format!("absent{n}"), absent));
    let daemon = attacked(options).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(daemon.apart().await);
    }
    under_attack(&daemon, 192 * MIB, async {
        let mut held = Vec::new();
        for client in &clients {
            for _ in 0..125 {
                let mut plugins = PluginsClient::new(client.channel());
                let stream = plugins.watch_plugins(WatchPluginsRequest::default()).await;
                held.push(stream.expect("watch").into_inner());
            }
        }
        assert_eq!(held.len(), 1000);
        // A fifth of them read for a while: everybody's plugins, then the changes.
        let readers = held.iter_mut().step_by(5).map(|stream| async move {
            let mut read = 0u64;
            let end = tokio::time::Instant::now() + Duration::from_secs(4);
            while let Ok(change) = tokio::time::timeout_at(end, stream.message()).await {
                change.expect("change").expect("it goes on");
                read += 1;
            }
            read
        });
        let read = join_all(readers).await;
        assert!(read.iter().all(|read| *read >= 52), "everybody is told of every plugin");
        read.iter().sum()
    })
    .await;
    daemon.stop().await;
}

/// Bodies in parts whose heads have no end: what looks for it looks through all that has
/// come, each time that a little more comes.
#[tokio::test]
async fn heads_of_parts_without_end_are_refused() {
    let daemon = attacked(Options::new().port()).await;
    let address = daemon.address().await;
    under_attack(&daemon, 64 * MIB, async {
        let attacks = ["-", "x: y\r\n"].map(|line| {
            let address = address.clone();
            tokio::spawn(async move {
                let mut http = Http::tcp(&address).await.expect("connect");
                let kind = "multipart/form-data; boundary=b";
                let url = "/v1/plugins/good/tools/ping/run";
                http.head("POST", url, kind, 48 << 20).await.expect("head");
                let body = format!("--b\r\n{}", line.repeat((16 << 20) / line.len()));
                // It may be refused while it is being sent.
                let _ = http.write(body.as_bytes()).await;
                for _ in 0..100 {
                    let _ = http.write(line.as_bytes()).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                http.answer_head().await.is_ok()
            })
        });
        let mut answered = 0;
        for attack in attacks {
            answered += u64::from(attack.await.expect("attack"));
        }
        answered
    })
    .await;
    daemon.stop().await;
}

/// A body that is refused before its end: over HTTP/2 its client reads why, each time,
/// and not that the stream was reset.
#[tokio::test]
async fn a_body_that_is_too_large_is_told_over_http2() {
    let daemon = Options::new().port().start().await;
    let url = format!("http://{}/v1/plugins/good/tools/ping/run", daemon.address().await);
    let file = daemon.root.join("large");
    std::fs::write(&file, vec![b' '; 100_000_000]).expect("file");
    let (known, unknown) = (format!("@{}", file.display()), file.display().to_string());
    let kind = "content-type: application/json";
    for _ in 0..5 {
        let said = ["--http2-prior-knowledge", "-H", kind, "--data-binary", &known, &url];
        let unsaid = ["--http2-prior-knowledge", "-H", kind, "-X", "POST", "-T", "-", &url];
        let (status, text) = curl(&said).await;
        assert_eq!(status, 413, "{text}");
        assert!(text.contains("max_request"), "{text}");
        let file = std::fs::File::open(&unknown).expect("file");
        let (status, text) = stockade_tests::curl_with(file, &unsaid).await;
        assert_eq!(status, 413, "{text}");
    }
    // As bytes it may be no longer than max_request allows either.
    let body = ["--http2-prior-knowledge", "-H", "content-type: image/png", "--data-binary"];
    let (status, text) = curl(&[&body[..], &[&known, &url]].concat()).await;
    assert_eq!(status, 413, "{text}");
    assert!(text.contains("max_request"), "{text}");
    daemon.stop().await;
}

/// Opens no window and asks very often; the answers are wanted by nobody.
async fn unread_questions(
    address: &str,
    count: usize,
) -> Option<(h2::client::SendRequest<bytes::Bytes>, Vec<h2::client::ResponseFuture>)> {
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .max_concurrent_streams(1000)
        .handshake::<_, bytes::Bytes>(stream)
        .await
        .ok()?;
    tokio::spawn(connection);
    let mut sender = sender.ready().await.ok()?;
    let mut answers = Vec::new();
    for n in 0..count {
        // It is about what is held, not about how fast it is asked for.
        if n % 5 == 0 {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let url = format!("http://{address}/v1/plugins/x/tools");
        let request = http::Request::get(url).body(()).ok()?;
        answers.push(sender.send_request(request, true).ok()?.0);
        sender = sender.ready().await.ok()?;
    }
    Some((sender, answers))
}

/// 20 connections that ask 100 times each for a list of tools and take no byte of it.
#[tokio::test]
async fn answers_to_questions_that_nobody_reads_are_few() {
    let daemon = attacked(Options::new().port().rogue("x", "")).await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    under_attack(&daemon, 64 * MIB, async {
        let asking = join_all((0..20).map(|_| unread_questions(&address, 100))).await;
        let held: Vec<_> = asking.into_iter().flatten().collect();
        a_while().await;
        held.len() as u64
    })
    .await;
    daemon.stop().await;
}

/// A connection over HTTP/2, and its end of so many requests that it has sent.
type Burst = (h2::client::SendRequest<bytes::Bytes>, Vec<Asked>);
type Asked = (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>);

async fn http2(address: &str) -> Option<h2::client::SendRequest<bytes::Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let (sender, connection) = h2::client::handshake(stream).await.ok()?;
    tokio::spawn(connection);
    sender.ready().await.ok()
}

/// Sends so many requests at once; what belongs to them comes with their heads, or never.
async fn requests(
    mut sender: h2::client::SendRequest<bytes::Bytes>,
    address: &str,
    method: &str,
    message: Option<&bytes::Bytes>,
    count: usize,
) -> Option<Burst> {
    let mut asked = Vec::new();
    for _ in 0..count {
        let url = format!("http://{address}/stockade.v1.Tools/{method}");
        let request = http::Request::post(url).header("content-type", "application/grpc");
        let (answer, mut body) = sender.send_request(request.body(()).ok()?, false).ok()?;
        if let Some(message) = message {
            body.send_data(message.clone(), true).ok()?;
        }
        asked.push((answer, body));
        sender = sender.ready().await.ok()?;
    }
    Some((sender, asked))
}

/// Tens of thousands of streams on which nothing comes: they are paid for, and refused
/// when there is no room for more.
#[tokio::test]
async fn streams_on_which_nothing_comes_are_paid_for() {
    raise_descriptor_limit();
    let daemon = attacked(Options::new().port().config(BUFFERED)).await;
    let address = daemon.address().await;
    under_attack(&daemon, 320 * MIB, async {
        let mut held = Vec::new();
        for _ in 0..120 {
            let sender = http2(&address).await.expect("connect");
            held.extend(requests(sender, &address, "Calls", None, 250).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        a_while().await;
        held.len() as u64
    })
    .await;
    daemon.stop().await;
}

/// Many connections that send many calls each, all at the same moment: nobody waits until
/// all of them have been answered.
#[tokio::test]
async fn calls_of_many_connections_at_once_are_answered_in_turn() {
    raise_descriptor_limit();
    let daemon = attacked(Options::new().port().config(BUFFERED)).await;
    let address = daemon.address().await;
    // Of a plugin that does not exist: what the daemon itself does for a call.
    let call = CallRequest { plugin: "no".into(), tool: "t".into(), ..CallRequest::default() };
    let call = prost::Message::encode_to_vec(&call);
    let mut message = vec![0, 0, 0, 0, call.len() as u8];
    message.extend(call);
    let message = bytes::Bytes::from(message);
    under_attack(&daemon, 320 * MIB, async {
        let mut senders = join_all((0..100).map(|_| http2(&address))).await;
        let mut answered = 0;
        for _ in 0..4 {
            let burst = senders.into_iter().flatten();
            let burst = burst.map(|sender| requests(sender, &address, "Call", Some(&message), 200));
            senders = Vec::new();
            for (sender, asked) in join_all(burst).await.into_iter().flatten() {
                for (answer, _) in asked {
                    answered += u64::from(answer.await.is_ok());
                }
                senders.push(Some(sender));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        answered
    })
    .await;
    daemon.stop().await;
}

/// What a client says first when it speaks TLS.
async fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let port = listener.local_addr().expect("address").port();
    let client = tokio::process::Command::new("curl")
        .args(["-sk", "--max-time", "10", &format!("https://127.0.0.1:{port}/")])
        .kill_on_drop(true)
        .spawn()
        .expect("curl");
    let (mut stream, _) = listener.accept().await.expect("client");
    let mut hello = vec![0; 4096];
    let read = stream.read(&mut hello).await.expect("hello");
    drop(client);
    hello.truncate(read);
    hello
}

/// A handshake is asked for with five hundred bytes, and costs a signature.
#[tokio::test]
async fn handshakes_of_many_connections_are_made_in_turn() {
    let folder = tempfile::tempdir().expect("folder");
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:4096", "-nodes", "-keyout", "key", "-out", "pem"])
        .args(["-days", "2", "-subj", "/CN=localhost"])
        .current_dir(folder.path())
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    stockade_tests::give_to_test_user(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = format!("tls_cert = {:?}\ntls_key = {:?}\n", file("pem"), file("key"));
    let daemon = attacked(Options::new().listen("127.0.0.1:0").config(&tls)).await;
    let address = daemon.address().await;
    let hello = client_hello().await;
    under_attack(&daemon, 64 * MIB, async {
        let end = Instant::now() + Duration::from_secs(5);
        let mut shaken = 0;
        while Instant::now() < end {
            let each = (0..100).map(|_| async {
                let mut stream = TcpStream::connect(&address).await.ok()?;
                stream.write_all(&hello).await.ok()?;
                let mut answer = [0; 64];
                stream.read(&mut answer).await.ok().filter(|read| *read > 0)
            });
            shaken += join_all(each).await.into_iter().flatten().count() as u64;
        }
        shaken
    })
    .await;
    daemon.stop().await;
}
