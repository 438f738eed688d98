//! How the API server is reached, and as whom.

use super::fault::SourceError;
use kube::Config;
use kube::config::KubeConfigOptions;
use std::path::Path;
use std::time::Duration;

/// How long a connection may take, and an answer that is no watch.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how long without a word a connection counts as dead: longer than a watch lasts.
const LONGEST_SILENCE: Duration = Duration::from_secs(90);

/// How to reach the API server and as whom.
pub(super) async fn configuration(server: Option<&str>, account: &Path) -> Result<Config, SourceError> {
    let token = account.join("token");
    let mut config = if token.exists() {
        let url = match server {
            Some(server) => url(server),
            None => environment_url()?,
        };
        let mut config = Config::new(url.parse().map_err(|error| SourceError::Configuration(format!("{url}: {error}")))?);
        config.auth_info.token_file = Some(token.display().to_string());
        // Read from the file, again and again: it may be renewed. No other authority is trusted.
        config.root_cert = Some(Vec::new());
        config.root_cert_file = Some(account.join("ca.crt"));
        config
    } else if std::env::var_os("KUBECONFIG").is_some() {
        let mut config = Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|error| SourceError::Configuration(format!("KUBECONFIG: {error}")))?;
        if let Some(server) = server {
            let url = url(server);
            config.cluster_url = url.parse().map_err(|error| SourceError::Configuration(format!("{url}: {error}")))?;
        }
        config
    } else {
        return Err(SourceError::Configuration(format!(
            "there is no service account at {} and KUBECONFIG is not set; --directory reads manifests from a directory instead",
            account.display()
        )));
    };
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(LONGEST_SILENCE);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// `host:port` as a URL.
fn url(server: &str) -> String {
    if server.contains("://") { server.to_owned() } else { format!("https://{server}") }
}

/// The address that every pod has in its environment.
fn environment_url() -> Result<String, SourceError> {
    let variable = |name: &str| {
        std::env::var(name)
            .map_err(|_| SourceError::Configuration(format!("{name} is not set; --api-server host:port says where the API server is")))
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    Ok(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_service_account_is_used_with_the_address_that_was_given() {
        let account = tempfile::tempdir().unwrap();
        std::fs::write(account.path().join("token"), "secret").unwrap();
        let config = configuration(Some("192.0.2.1:6443"), account.path()).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://192.0.2.1:6443/");
        assert_eq!(config.root_cert_file.as_deref(), Some(account.path().join("ca.crt").as_path()));
        assert_eq!(config.auth_info.token_file.as_deref(), account.path().join("token").to_str());
    }

    #[test]
    fn an_address_without_a_scheme_is_reached_by_https() {
        assert_eq!(url("192.0.2.1:6443"), "https://192.0.2.1:6443");
        assert_eq!(url("http://[::1]:8080"), "http://[::1]:8080");
    }
}
