//! HTTP/1.1 by hand: a request as it goes over the wire, and what comes back,
//! without keeping more of it than a test looks at.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// One connection, kept alive from request to request.
pub struct Http {
    wire: tokio::io::BufReader<Box<dyn Wire>>,
}

/// An answer; of its body no more than [`Reply::KEPT`] bytes are kept.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: Vec<u8>,
    /// The size of the whole body.
    pub size: u64,
}

impl Reply {
    /// So much of a body is kept.
    pub const KEPT: usize = 8 << 20;

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Http {
    /// Connects to a unix socket.
    pub async fn unix(socket: &Path) -> io::Result<Self> {
        Ok(Self::over(Box::new(UnixStream::connect(socket).await?)))
    }

    /// Connects to a port.
    pub async fn tcp(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(wire: Box<dyn Wire>) -> Self {
        Http { wire: tokio::io::BufReader::with_capacity(64 << 10, wire) }
    }

    /// Bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes).await?;
        self.wire.flush().await
    }

    /// The head of a request that announces a body of this size.
    pub async fn head(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        size: usize,
    ) -> io::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n\
             content-length: {size}\r\n\r\n"
        );
        self.write(head.as_bytes()).await
    }

    /// Asks for a page.
    pub async fn get(&mut self, path: &str) -> io::Result<Reply> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.write(head.as_bytes()).await?;
        self.reply().await
    }

    /// Sends JSON. Whoever refuses it may answer before it has read it all.
    pub async fn post(&mut self, path: &str, json: &[u8]) -> io::Result<Reply> {
        self.head("POST", path, "application/json", json.len()).await?;
        let _ = self.write(json).await;
        self.reply().await
    }

    /// A whole answer.
    pub async fn reply(&mut self) -> io::Result<Reply> {
        let head = self.answer_head().await?;
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| wrong("no status"))?;
        let mut reply = Reply { status, head, body: Vec::new(), size: 0 };
        if reply.head.contains("transfer-encoding: chunked") {
            loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| wrong("no chunk"))?;
                self.take(size, &mut reply).await?;
                self.line().await?;
                if size == 0 {
                    return Ok(reply);
                }
            }
        }
        let size = reply.head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let size = size.and_then(|size| size.trim().parse().ok()).unwrap_or(0);
        self.take(size, &mut reply).await?;
        Ok(reply)
    }

    /// The status line and the headers of an answer, in lower case.
    pub async fn answer_head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(head.to_lowercase());
            }
            head += &line;
            head.push('\n');
        }
    }

    /// Reads and forgets for so long, or until the end or a second of silence.
    pub async fn drain(&mut self, patience: Duration) -> u64 {
        let mut drained = 0;
        let mut buffer = vec![0; 64 << 10];
        let end = tokio::time::Instant::now() + patience;
        while tokio::time::Instant::now() < end {
            let read = tokio::time::timeout(Duration::from_secs(1), self.wire.read(&mut buffer));
            match read.await {
                Ok(Ok(read)) if read > 0 => drained += read as u64,
                _ => break,
            }
        }
        drained
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        if self.wire.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    async fn take(&mut self, size: usize, reply: &mut Reply) -> io::Result<()> {
        let mut left = size;
        let mut buffer = vec![0; left.min(64 << 10)];
        while left > 0 {
            let most = left.min(buffer.len());
            self.wire.read_exact(&mut buffer[..most]).await?;
            let room = Reply::KEPT.saturating_sub(reply.body.len()).min(most);
            reply.body.extend_from_slice(&buffer[..room]);
            reply.size += most as u64;
            left -= most;
        }
        Ok(())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
