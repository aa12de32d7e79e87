//! One end of a connection, as a person names it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A pod or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `NAMESPACE/POD`.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
    /// Anything that has an address.
    Address(IpAddr),
}

/// What names neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give NAMESPACE/POD or an address")]
pub struct EndError;

impl FromStr for End {
    type Err = EndError;

    fn from_str(text: &str) -> Result<Self, EndError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(EndError),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}
