//! Sockets: the daemon's own, and the world.

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::net::{SocketAddr, UnixListener},
};

use libc::{
    AF_ALG, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK, ECONNREFUSED, ENOENT,
    EPERM, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SYS_connect, SYS_listen, SYS_sendto, SYS_socket,
    SYS_socketpair,
};
use serde_json::{Value, json};

use crate::prison::{OPEN, Prison, STANDARD, STRICT, everybody};

const MPTCP: i32 = 262;

fn unix_address(path: &[u8]) -> (Value, usize) {
    let mut bytes = (AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(path);
    let length = bytes.len();
    (json!({ "bytes": bytes }), length)
}

fn inet_address(port: u16) -> Value {
    let mut bytes = (AF_INET as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([127, 0, 0, 1]);
    bytes.extend([0; 8]);
    json!({ "bytes": bytes })
}

/// 63
#[tokio::test]
async fn the_daemons_socket_is_out_of_reach() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let mut path = prison.daemon.socket.display().to_string().into_bytes();
        path.push(0);
        let (address, length) = unix_address(&path);
        let stream = json!([
            [SYS_socket, AF_UNIX, SOCK_STREAM, 0],
            [SYS_connect, {"ret": 0}, address, length]
        ]);
        let control = prison.attack(OPEN, stream.clone()).await;
        assert_eq!(control.last(), 0, "{control:?}");
        let answers = prison.attack(STANDARD, stream.clone()).await;
        assert_eq!(answers.last(), -i64::from(ENOENT), "{answers:?}");
        let answers = prison.attack(STRICT, stream).await;
        assert_eq!(answers.results[0], Some(-i64::from(EPERM)), "{answers:?}");
        // A datagram goes to any path without a connect.
        let datagram = json!([
            [SYS_socket, AF_UNIX, SOCK_DGRAM, 0],
            [SYS_sendto, {"ret": 0}, "x", 1, 0, address, length]
        ]);
        let answers = prison.attack(STANDARD, datagram).await;
        assert_eq!(answers.last(), -i64::from(ENOENT), "{answers:?}");
        for kind in [SOCK_DGRAM, SOCK_RAW] {
            let pair = json!([[SYS_socketpair, AF_UNIX, kind, 0, {"out": 8}]]);
            assert_eq!(prison.attack(STRICT, pair).await.last(), -i64::from(EPERM));
        }
        for family in [AF_NETLINK, AF_VSOCK, libc::AF_TIPC] {
            let pair = json!([[SYS_socketpair, family, SOCK_STREAM, 0, {"out": 8}]]);
            prison.refuses_without_control("a foreign pair", pair, EPERM, EPERM).await;
        }
        prison.end().await;
    }
}

/// 63: names without a path.
#[tokio::test]
async fn abstract_sockets_of_others_are_out_of_reach() {
    for (more, errno) in [("", ECONNREFUSED), ("net = true", EPERM)] {
        for who in everybody() {
            let name = format!("stockade-test-{}-{who:?}-{errno}", std::process::id());
            let address = SocketAddr::from_abstract_name(&name).expect("name");
            let _listener = UnixListener::bind_addr(&address).expect("listen");
            let prison = Prison::with(who, more).await;
            let (address, length) = unix_address(format!("\0{name}").as_bytes());
            let calls = json!([
                [SYS_socket, AF_UNIX, SOCK_STREAM, 0],
                [SYS_connect, {"ret": 0}, address, length]
            ]);
            assert_eq!(prison.attack(OPEN, calls.clone()).await.last(), 0);
            let answers = prison.attack(STANDARD, calls).await;
            assert_eq!(answers.last(), -i64::from(errno), "{who:?} {more}: {answers:?}");
            prison.end().await;
        }
    }
}

/// 65
#[tokio::test]
async fn no_socket_leads_out() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        for (what, family, kind, protocol) in [
            ("TCP", AF_INET, SOCK_STREAM, 0),
            ("UDP", AF_INET, SOCK_DGRAM, 0),
            ("TCP over IPv6", AF_INET6, SOCK_STREAM, 0),
            ("NETLINK", AF_NETLINK, SOCK_RAW, 0),
        ] {
            let calls = json!([[SYS_socket, family, kind, protocol]]);
            prison.refuses(what, calls, EPERM, EPERM).await;
        }
        for (what, family, kind, protocol) in [
            ("MPTCP", AF_INET, SOCK_STREAM, MPTCP),
            ("VSOCK", AF_VSOCK, SOCK_STREAM, 0),
            ("ALG", AF_ALG, libc::SOCK_SEQPACKET, 0),
            ("PACKET", AF_PACKET, SOCK_RAW, 0),
        ] {
            let calls = json!([[SYS_socket, family, kind, protocol]]);
            prison.refuses_without_control(what, calls, EPERM, EPERM).await;
        }
        prison.end().await;
    }
}

/// What is granted works: a loopback of its own, or the machine's network.
#[tokio::test]
async fn a_granted_network_is_the_one_granted() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = server.local_addr().expect("address").port();
    for who in everybody() {
        let connect = json!([
            [SYS_socket, AF_INET, SOCK_STREAM, 0],
            [SYS_connect, {"ret": 0}, inet_address(port), 16]
        ]);
        let prison = Prison::with(who, "net = \"loopback\"").await;
        // Its own loopback is up, and nobody listens there.
        let refused = -i64::from(ECONNREFUSED);
        assert_eq!(prison.attack(OPEN, connect.clone()).await.last(), 0);
        assert_eq!(prison.attack(STANDARD, connect.clone()).await.last(), refused);
        let listen = json!([[SYS_socket, AF_INET, SOCK_STREAM, 0], [SYS_listen, {"ret": 0}, 1]]);
        assert_eq!(prison.attack(STANDARD, listen).await.last(), 0);
        prison.end().await;
        let prison = Prison::with(who, "net = true").await;
        assert_eq!(prison.attack(STANDARD, connect.clone()).await.last(), 0);
        assert_eq!(prison.attack(STRICT, connect).await.last(), 0);
        prison.end().await;
    }
}
