//! Random numbers.

/// The operating system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("no random numbers")]
pub struct RandomError(#[source] getrandom::Error);

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    #[cfg(feature = "simulation")]
    if crate::simulation::with(|host| host.random(&mut bytes)).is_some() {
        return Ok(bytes);
    }
    getrandom::fill(&mut bytes).map_err(RandomError)?;
    Ok(bytes)
}
