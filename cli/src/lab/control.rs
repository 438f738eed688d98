//! Orders to a running lab of several nodes, over a socket of its own: one line there, one line back.

use super::paths;
use super::registry::Lab;
use crate::error::CliError;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

/// What a lab is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The node of this name loses its link and its agent.
    Stop(String),
    /// It gets them back.
    Start(String),
}

/// An order that waits to be obeyed.
#[derive(Debug)]
pub struct Request {
    /// The order.
    pub order: Order,
    answer: oneshot::Sender<Result<(), String>>,
}

impl Request {
    /// Tells who gave it that it is done, or why not.
    pub fn answer(self, done: Result<(), String>) {
        // Who has gone meanwhile does not want to know.
        let _ = self.answer.send(done);
    }
}

/// Takes orders from now on. Needs a tokio runtime.
pub fn listen() -> Result<mpsc::Receiver<Request>, CliError> {
    let failed = |error| CliError::Environment(format!("cannot listen on {}: {error}", paths::control().display()));
    let listener = tokio::net::UnixListener::bind(paths::control()).map_err(failed)?;
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, tell.clone()))),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    });
    Ok(told)
}

async fn serve(stream: tokio::net::UnixStream, tell: mpsc::Sender<Request>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    // An error here is the client's: it hung up.
    if tokio::io::BufReader::new(read).read_line(&mut line).await.is_err() {
        return;
    }
    let done = match serde_json::from_str(&line) {
        Err(error) => Err(format!("the order cannot be read: {error}; use the palisade that runs the lab")),
        Ok(order) => {
            let (answer, answered) = oneshot::channel();
            let ending = || Err("the lab is ending".to_owned());
            match tell.send(Request { order, answer }).await {
                Ok(()) => answered.await.unwrap_or_else(|_| ending()),
                Err(_) => ending(),
            }
        }
    };
    if let Ok(mut line) = serde_json::to_vec(&done) {
        line.push(b'\n');
        let _ = write.write_all(&line).await;
    }
}

/// Gives a lab an order and waits until it is obeyed, and everything tried again.
pub fn give(lab: &Lab, order: &Order) -> Result<(), CliError> {
    let several = "only a lab whose directory has Node objects takes orders about them";
    let stream = UnixStream::connect(lab.inside(&paths::control()))
        .map_err(|error| CliError::Input(format!("the lab of {} takes no orders ({error}): {several}", lab.directory.display())))?;
    let talk = || -> std::io::Result<String> {
        (&stream).write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes())?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = talk().map_err(|error| CliError::Failed(format!("the lab does not answer: {error}")))?;
    match serde_json::from_str::<Result<(), String>>(&line) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(CliError::Input(why)),
        Err(_) => Err(CliError::Environment("the lab ended before the order was obeyed".into())),
    }
}
