//! nginx, answering every request with a few bytes and closing the connection if asked to; with TLS also HTTP/2 and a file.

use std::path::Path;

use anyhow::{Context, Result};
use palisade_lab::program;
use palisade_lab::{Lab, Process, Spawn, WAIT};

use palisade_lab::program::{path, wait_port};

/// Where it listens, for both families.
pub const PORT: u16 = 8080;

/// Where it speaks HTTP/2 over TLS, if so started.
pub const TLS_PORT: u16 = 8443;

/// Starts it on the server's side.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab) -> Result<Process> {
    launch(lab, "").await
}

/// As [`start`]; besides it speaks HTTP/2 over TLS, with a certificate that nobody signed, and has `/file` of `bytes`.
///
/// # Errors
/// It does not start, or there is no certificate.
pub async fn start_with_tls(lab: &Lab, bytes: usize) -> Result<Process> {
    let dir = folder(lab)?;
    let at = dir.display();
    let (key, certificate) = (format!("{at}/key.pem"), format!("{at}/certificate.pem"));
    let made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=lab"];
    let files = ["-days", "1", "-keyout", &key, "-out", &certificate];
    program::run(lab.server(), lab.dir(), WAIT, "openssl", &[&made[..], &files].concat()).await?;
    std::fs::write(dir.join("file"), vec![b'x'; bytes])?;
    let tls = format!(
        "  server {{\n    listen 0.0.0.0:{TLS_PORT} ssl http2;\n    listen [::]:{TLS_PORT} ssl http2;\n    \
         ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    location = /file {{ root {at}; }}\n  }}\n"
    );
    let mut process = launch(lab, &tls).await?;
    wait_port(lab.server(), &mut process, TLS_PORT).await.context("nginx with TLS")?;
    Ok(process)
}

fn folder(lab: &Lab) -> Result<std::path::PathBuf> {
    let dir = lab.dir().join("nginx");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

async fn launch(lab: &Lab, more_servers: &str) -> Result<Process> {
    let dir = folder(lab)?;
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config(&dir, more_servers))?;
    let spawn = Spawn::new(path("nginx")?, dir.join("out")).arg("-e").arg(dir.join("error.log")).arg("-c").arg(file);
    let mut process = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut process, PORT).await.context("nginx")?;
    Ok(process)
}

fn config(dir: &Path, more_servers: &str) -> String {
    let at = dir.display();
    format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         worker_rlimit_nofile 65536;\nevents {{ worker_connections 16384; multi_accept on; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  \
         fastcgi_temp_path {at}/fastcgi;\n  uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n  \
         server {{\n    listen 0.0.0.0:{PORT} backlog=4096;\n    listen [::]:{PORT} backlog=4096;\n    \
         location / {{ return 200 \"hello\\n\"; }}\n  }}\n{more_servers}}}\n"
    )
}
