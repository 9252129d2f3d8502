//! `POST /run-tool`, `/evaluate-condition`, …; `GET /describe`.

use std::{error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{
    service::{Service, offer},
    signature,
};

pub(crate) async fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let router = Router::new()
        .route("/describe", get(|| async { Json(offer()) }))
        .route("/{method}", post(ask))
        .with_state(Service::default());
    axum::serve(tokio::net::TcpListener::bind(address).await?, router).await?;
    Ok(())
}

async fn ask(
    State(service): State<Service>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name)?.to_str().ok();
    if !signature::check(header, &body) {
        let text = json!({"error": "the signature is missing or wrong"});
        return (StatusCode::UNAUTHORIZED, Json(text)).into_response();
    }
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "no JSON"}))).into_response();
    };
    match service.answer(&method, &request) {
        Ok(answer) => Json(answer).into_response(),
        Err((kind, message)) => Json(json!({"error": message, "error_type": kind})).into_response(),
    }
}
