//! The daemon.

/// temp
pub struct Node;
/// temp
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct NodeError;
impl NodeError {
    /// temp
    pub fn help(&self) -> Option<String> {
        None
    }
}
impl Node {
    /// temp
    pub async fn run(_c: crate::config::Config) -> Result<(), NodeError> {
        Ok(())
    }
}
