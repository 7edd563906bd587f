//! nginx, answering every request with a few bytes and closing the connection if asked to.

use anyhow::{Context, Result};
use palisade_cli::lab::{Lab, Process, Spawn};

use super::{path, wait_port};

/// Where it listens, for both families.
pub const PORT: u16 = 8080;

/// Starts it on the server's side.
///
/// # Errors
/// It does not start.
pub async fn start(lab: &Lab) -> Result<Process> {
    let dir = lab.dir().join("nginx");
    std::fs::create_dir_all(&dir)?;
    let at = dir.display();
    let config = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         worker_rlimit_nofile 65536;\nevents {{ worker_connections 16384; multi_accept on; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  \
         fastcgi_temp_path {at}/fastcgi;\n  uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n  \
         server {{\n    listen 0.0.0.0:{PORT} backlog=4096;\n    listen [::]:{PORT} backlog=4096;\n    \
         location / {{ return 200 \"hello\\n\"; }}\n  }}\n}}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let spawn = Spawn::new(path("nginx")?, dir.join("out")).arg("-e").arg(dir.join("error.log")).arg("-c").arg(file);
    let mut process = lab.server().start(spawn).await?;
    wait_port(lab.server(), &mut process, PORT).await.context("nginx")?;
    Ok(process)
}
