//! Messages in frames of one byte, written past HTTP/2's own books: on the calls channel,
//! as an answer, and on the host channel, as a request.

use std::{
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::io::{Errno, write};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

/// What the message says of its length: it never comes to its end.
const LENGTH: u32 = 6 << 20;
/// How long, a bit less than the call may take.
const TIME: Duration = Duration::from_secs(3);

/// The stream of all calls: the third request of the daemon.
const CALLS_STREAM: u8 = 5;

/// Answers in such frames.
pub async fn answer() {
    tokio::task::spawn_blocking(|| crumbs(stockade_proto::fds::CALLS, CALLS_STREAM))
        .await
        .expect("join");
}

/// Asks in such frames, as the first request of the host channel.
pub async fn ask() {
    let (channel, connection) = crate::forge::connect().await;
    tokio::spawn(connection);
    let request = Request::new(futures_util::stream::pending::<()>());
    let path = PathAndQuery::from_static("/stockade.host.v1.Host/KvSet");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<(), ()>::default();
    let asked =
        tokio::spawn(async move { grpc.client_streaming(request, path, codec).await.err() });
    // Its head is on its way, and the settings are agreed on.
    tokio::time::sleep(Duration::from_millis(200)).await;
    tokio::task::spawn_blocking(|| crumbs(stockade_proto::fds::HOST, 1)).await.expect("join");
    asked.abort();
}

fn crumbs(fd: i32, stream: u8) {
    let mut head = vec![0, 0, 5, 0, 0, 0, 0, 0, stream, 0];
    head.extend(LENGTH.to_be_bytes());
    put(fd, &head);
    let frames = [0, 0, 1, 0, 0, 0, 0, 0, stream, b'x'].repeat(1000);
    let end = Instant::now() + TIME;
    let mut bytes = 0;
    while Instant::now() < end && bytes + 1000 < LENGTH {
        put(fd, &frames);
        bytes += 1000;
    }
}

fn put(fd: i32, mut bytes: &[u8]) {
    // SAFETY: the channel stays open as long as the process lives.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
}
