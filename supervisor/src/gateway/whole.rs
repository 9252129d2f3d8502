//! Answers that are made as a whole and may be large: by the crew, in the connection's
//! turn.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use prost::Message;
use serde::Serialize;
use serde_json::json;
use tonic::Status;

use super::{body::Reservation, status, texts};
use crate::{
    Supervisor,
    capacity::{Held, Lane},
};

/// What a message takes until it has been encoded, and in whose turn it is.
#[derive(Clone, Debug)]
pub(super) struct Unencoded {
    pub(super) lane: Lane,
    _paid: Held,
}

/// A message of gRPC; its connection pays for it.
pub(super) async fn message<M: Message + 'static>(
    supervisor: &Supervisor,
    reservation: Option<Reservation>,
    make: impl FnOnce() -> M + Send + 'static,
) -> Result<tonic::Response<M>, Status> {
    let made = texts::aside(supervisor, move || {
        let message = make();
        let account = reservation.map(|reservation| reservation.account());
        let paid = account.map(|account| account.charge(message.encoded_len())).transpose();
        paid.map(|paid| (message, paid.map(Held::new)))
    });
    let made = made.await.map_err(status::overloaded)?;
    let (message, paid) =
        made.map_err(|why| status::of_room(format!("the answer was not sent: {why}"), why))?;
    let mut response = tonic::Response::new(message);
    if let Some(paid) = paid {
        response
            .extensions_mut()
            .insert(Unencoded { lane: texts::lane().for_bytes(0), _paid: paid });
    }
    Ok(response)
}

/// A JSON value of HTTP.
pub(super) async fn json<T: Serialize>(
    supervisor: &Supervisor,
    make: impl FnOnce() -> T + Send + 'static,
) -> Response {
    text(supervisor, None, move || serde_json::to_vec(&make()).unwrap_or_default()).await
}

/// JSON text of HTTP; its connection pays for so many bytes while it is made.
pub(super) async fn text(
    supervisor: &Supervisor,
    payer: Option<(Reservation, usize)>,
    make: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Response {
    let busy = |why: String| {
        let body = Json(json!({ "detail": why }));
        let retry = [(header::RETRY_AFTER, "1")];
        (StatusCode::SERVICE_UNAVAILABLE, retry, body).into_response()
    };
    let paid = payer.map(|(reservation, bytes)| reservation.account().charge(bytes)).transpose();
    let _paid = match paid {
        Ok(paid) => paid,
        Err(why) => return busy(format!("the answer was not made: {why}")),
    };
    match texts::aside(supervisor, make).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(why) => busy(why.to_string()),
    }
}
