//! `stockade.v1.Data`: what plugins have stored, who changed it, what they may.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use stockade_proto::v1::{
    self, DeleteValueRequest, DeleteValueResponse, GetDocumentRequest, GetDocumentResponse,
    GetValueRequest, GetValueResponse, ListDocumentsRequest, ListDocumentsResponse,
    ListPermissionsRequest, ListPermissionsResponse, ListProvenanceRequest, ListProvenanceResponse,
    ListValuesRequest, SetDocumentRequest, SetDocumentResponse, SetValueRequest, SetValueResponse,
    data_server,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{super::status, plugins::not_found, who};
use crate::{
    Supervisor,
    capacity::{limits, read_through},
    gateway::{body::Reservation, report, texts, whole},
    plugin::Handle,
    services::HostServices,
    store::{
        Author, Data, DataError, Entry, Payer, ProvenanceQuery, Row, check_workspace,
        operators_turn,
    },
};

/// Rows that are read at once.
const PAGE: u32 = 256;
/// Records, when nobody says how many.
const RECORDS: u32 = 100;

pub(super) struct DataService {
    supervisor: Supervisor,
}

impl DataService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        DataService { supervisor: supervisor.clone() }
    }

    fn data(&self) -> &Arc<Data> {
        self.supervisor.services().data()
    }
}

/// The store's answer as a status.
pub(crate) fn data_error(error: DataError) -> Status {
    let text = status::fitting(error.to_string(), 0);
    match error {
        DataError::Busy | DataError::Room(_) => status::overloaded(text),
        DataError::Full(_) | DataError::Quota(_) => Status::resource_exhausted(text),
        DataError::Locked(_) => Status::aborted(text),
        DataError::Invalid(_) => Status::invalid_argument(text),
        DataError::Broken(_) => Status::unavailable(text),
    }
}

fn author(who: &str, workspace: &str) -> Author {
    super::workspaces::author(who, workspace)
}

/// `key`, or `plugin:<plugin>:key`, as operators type it.
pub(crate) fn key_of<'k>(plugin: &str, key: &'k str) -> &'k str {
    let rest = key.strip_prefix("plugin:").and_then(|rest| rest.strip_prefix(plugin));
    rest.and_then(|rest| rest.strip_prefix(':')).unwrap_or(key)
}

/// Rows in order, page by page.
pub(crate) struct Pages {
    data: Arc<Data>,
    plugin: Option<String>,
    prefix: String,
    values: bool,
    after: (String, String),
    over: bool,
}

impl Pages {
    /// Of one plugin or of all.
    pub(crate) fn new(data: &Arc<Data>, plugin: String, prefix: String, values: bool) -> Self {
        let plugin = (!plugin.is_empty()).then_some(plugin);
        Pages { data: data.clone(), plugin, prefix, values, after: Default::default(), over: false }
    }

    /// The next page; empty when there is none.
    pub(crate) async fn next(&mut self) -> Result<Vec<Row>, DataError> {
        if self.over {
            return Ok(Vec::new());
        }
        let (plugin, prefix) = (self.plugin.clone(), self.prefix.clone());
        let (rows, more) = self
            .data
            .rows(operators_turn(), plugin, prefix, self.after.clone(), PAGE, self.values)
            .await?;
        self.over = !more;
        if let Some(last) = rows.last() {
            self.after = (last.plugin.clone(), last.key.clone());
        }
        Ok(rows)
    }
}

/// The plugins that are meant; all, if none is named.
pub(crate) fn handles(supervisor: &Supervisor, plugin: &str) -> Option<Vec<Handle>> {
    match plugin {
        "" => Some(supervisor.plugins().into_values().collect()),
        name => supervisor.plugin(name).map(|handle| vec![handle]),
    }
}

/// `ocr` is `plugin:ocr`; whoever has a space or a colon in the name is meant as typed.
pub(crate) fn actor(plugin: &str) -> Option<String> {
    match plugin {
        "" => None,
        name if name.contains([':', ' ']) => Some(name.to_owned()),
        name => Some(format!("plugin:{name}")),
    }
}

#[tonic::async_trait]
impl data_server::Data for DataService {
    type ListValuesStream = Pin<Box<dyn Stream<Item = Result<v1::Value, Status>> + Send>>;

    async fn list_permissions(
        &self,
        request: Request<ListPermissionsRequest>,
    ) -> Result<Response<ListPermissionsResponse>, Status> {
        who(&request)?;
        let plugin = request.into_inner().plugin;
        let handles = handles(&self.supervisor, &plugin).ok_or_else(|| not_found(&plugin))?;
        let plugins = report::permissions::permissions(&self.supervisor, &handles).await;
        let plugins = plugins.map_err(data_error)?;
        Ok(Response::new(ListPermissionsResponse { plugins }))
    }

    async fn get_value(
        &self,
        request: Request<GetValueRequest>,
    ) -> Result<Response<GetValueResponse>, Status> {
        who(&request)?;
        let GetValueRequest { plugin, key } = request.into_inner();
        let key = key_of(&plugin, &key);
        let entry = self.data().get(operators_turn(), &plugin, key).await.map_err(data_error)?;
        let row = entry.map(|entry| Row { plugin: plugin.clone(), key: key.to_owned(), entry });
        Ok(Response::new(GetValueResponse { value: row.map(report::data::value) }))
    }

    async fn set_value(
        &self,
        request: Request<SetValueRequest>,
    ) -> Result<Response<SetValueResponse>, Status> {
        let who = who(&request)?;
        let SetValueRequest { plugin, key, data, binary, ttl_ms } = request.into_inner();
        self.supervisor.plugin(&plugin).ok_or_else(|| not_found(&plugin))?;
        if !binary {
            let what = "the value is not JSON";
            texts::valid(&self.supervisor, data.clone(), what, read_through).await?;
        }
        let entry = Entry::new(data, binary, ttl_ms);
        let key = HostServices::check_key(&plugin, &key).map_err(Status::invalid_argument)?;
        let set = self.data().set(author(&who, ""), &plugin, &key, entry, Payer::operators()).await;
        set.map_err(data_error)?;
        Ok(Response::new(SetValueResponse {}))
    }

    async fn delete_value(
        &self,
        request: Request<DeleteValueRequest>,
    ) -> Result<Response<DeleteValueResponse>, Status> {
        let who = who(&request)?;
        let DeleteValueRequest { plugin, key } = request.into_inner();
        let key = key_of(&plugin, &key);
        let deleted = self.data().delete(author(&who, ""), &plugin, key).await;
        let deleted = deleted.map_err(data_error)?;
        Ok(Response::new(DeleteValueResponse { deleted }))
    }

    async fn list_values(
        &self,
        request: Request<ListValuesRequest>,
    ) -> Result<Response<Self::ListValuesStream>, Status> {
        who(&request)?;
        let account = request.extensions().get::<Reservation>().map(Reservation::account);
        let ListValuesRequest { plugin, prefix, values } = request.into_inner();
        let mut pages = Pages::new(self.data(), plugin, prefix, values);
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let page = match pages.next().await {
                    Ok(page) if page.is_empty() => return,
                    Ok(page) => page,
                    Err(error) => {
                        let _ = sender.send(Err(data_error(error))).await;
                        return;
                    }
                };
                // Its client may take its time.
                let bytes = page.iter().map(|row| row.entry.data.len()).sum();
                let _room = match account.as_ref().map(|account| account.charge(bytes)) {
                    Some(Err(why)) => {
                        let status = status::of_room(why, why);
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                    room => room,
                };
                for row in page {
                    if sender.send(Ok(report::data::value(row))).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_document(
        &self,
        request: Request<GetDocumentRequest>,
    ) -> Result<Response<GetDocumentResponse>, Status> {
        who(&request)?;
        let GetDocumentRequest { workspace, entity } = request.into_inner();
        let document = self.data().document(&workspace, &entity).await.map_err(data_error)?;
        Ok(Response::new(GetDocumentResponse { document }))
    }

    async fn set_document(
        &self,
        request: Request<SetDocumentRequest>,
    ) -> Result<Response<SetDocumentResponse>, Status> {
        let who = who(&request)?;
        let SetDocumentRequest { workspace, entity, document } = request.into_inner();
        HostServices::check_entity(&entity).map_err(Status::invalid_argument)?;
        if !workspace.is_empty() {
            check_workspace(&workspace).map_err(data_error)?;
        }
        let document = match document.is_empty() {
            true => None,
            false => {
                let what = "the document is no JSON object";
                Some(texts::json(&self.supervisor, document, what).await?)
            }
        };
        let set = self.data().set_document(author(&who, &workspace), &entity, document).await;
        set.map_err(data_error)?;
        Ok(Response::new(SetDocumentResponse {}))
    }

    async fn list_documents(
        &self,
        request: Request<ListDocumentsRequest>,
    ) -> Result<Response<ListDocumentsResponse>, Status> {
        who(&request)?;
        let reservation = request.extensions().get::<Reservation>().cloned();
        let ListDocumentsRequest { workspace, after } = request.into_inner();
        let most = limits::DOCUMENTS_LISTED;
        let entities = self.data().entities(&workspace, &after, most + 1).await;
        let mut entities = entities.map_err(data_error)?;
        let make = move || {
            let more = entities.len() > most;
            entities.truncate(most);
            ListDocumentsResponse { entities, more }
        };
        whole::message(&self.supervisor, reservation, make).await
    }

    async fn list_provenance(
        &self,
        request: Request<ListProvenanceRequest>,
    ) -> Result<Response<ListProvenanceResponse>, Status> {
        who(&request)?;
        let reservation = request.extensions().get::<Reservation>().cloned();
        let ListProvenanceRequest { plugin, key, workspace, limit } = request.into_inner();
        let query = ProvenanceQuery {
            actor: actor(&plugin),
            key: (!key.is_empty()).then_some(key),
            workspace: (!workspace.is_empty()).then_some(workspace),
            limit: if limit == 0 { RECORDS } else { limit },
        };
        let records = self.data().provenance(query).await.map_err(data_error)?;
        let make = move || {
            let records = records.into_iter().map(report::data::provenance).collect();
            ListProvenanceResponse { records }
        };
        whole::message(&self.supervisor, reservation, make).await
    }
}
