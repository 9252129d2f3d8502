//! JSON text frames: `{id, method, params}` in, `{id, result}` or `{id, error}` out.

use std::{error::Error, net::SocketAddr};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::{
    service::{Service, offer},
    signature,
};

pub(crate) async fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let router = Router::new().route("/", get(open)).with_state(Service::default());
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}

async fn open(
    State(service): State<Service>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    if !signature::check(header, b"") {
        return (StatusCode::UNAUTHORIZED, "the signature is missing or wrong").into_response();
    }
    upgrade.on_upgrade(|socket| talk(socket, service))
}

async fn talk(mut socket: WebSocket, service: Service) {
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else { continue };
        let Ok(frame) = serde_json::from_str::<Value>(&text) else { continue };
        let method = frame["method"].as_str().unwrap_or_default().replace('_', "-");
        let answer = match method.as_str() {
            "describe" => Ok(offer()),
            method => service.answer(method, &frame["params"]),
        };
        // What has no id wants no answer.
        let Some(id) = frame["id"].as_u64() else { continue };
        let answer = match answer {
            Ok(result) => json!({"id": id, "result": result}),
            Err((kind, message)) => {
                json!({"id": id, "error": {"type": kind, "message": message}})
            }
        };
        if socket.send(Message::text(answer.to_string())).await.is_err() {
            return;
        }
    }
}
