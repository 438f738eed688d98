//! What can be wrong with an object.

use crate::field::FieldPath;
use std::net::IpAddr;

/// A field of an object that cannot be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Which field.
    pub field: FieldPath,
    /// What is wrong with it.
    pub problem: Problem,
}

impl FieldError {
    /// `problem` at `field`.
    pub fn new(field: FieldPath, problem: Problem) -> Self {
        Self { field, problem }
    }
}

/// An object that cannot be taken as it is, and what to hold in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal<T> {
    /// What is wrong with it.
    pub error: FieldError,
    /// What stands for the object and opens nothing that the object could have closed.
    pub closed: Box<T>,
}

/// What is wrong with a field. Each message says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A field that must be there is not.
    #[error("is missing")]
    Missing,
    /// A name that the API server would not take.
    #[error("{0:?} is no valid name: {1}")]
    InvalidName(String, NameRule),
    /// The key of a label that the API server would not take.
    #[error("{0:?} is no valid label key: a name of at most 63 letters, digits, '-', '_' and '.', after an optional DNS prefix and '/'")]
    InvalidLabelKey(String),
    /// The value of a label that the API server would not take.
    #[error("{0:?} is no valid label value: at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")]
    InvalidLabelValue(String),
    /// A selector's operator that does not exist.
    #[error("there is no operator {0:?}: In, NotIn, Exists and DoesNotExist are")]
    UnknownOperator(String),
    /// `In` or `NotIn` without values.
    #[error("{0} needs at least one value")]
    OperatorWithoutValues(&'static str),
    /// `Exists` or `DoesNotExist` with values.
    #[error("{0} takes no values")]
    OperatorWithValues(&'static str),
    /// A policy type that does not exist.
    #[error("there is no policy type {0:?}: Ingress and Egress are")]
    UnknownPolicyType(String),
    /// A peer that names nothing. It must never be taken for "everybody".
    #[error("the peer names nothing: podSelector, namespaceSelector or ipBlock is needed")]
    EmptyPeer,
    /// A peer that is a block and a selector at once.
    #[error("ipBlock cannot stand beside podSelector or namespaceSelector in one peer: write two peers")]
    BlockWithSelector,
    /// Not a block of addresses.
    #[error("{0:?} is no CIDR block: write an address and a prefix length, such as 10.0.0.0/8 or fd00::/8")]
    InvalidCidr(String),
    /// An exception that is not a part of its block.
    #[error("{except} is not a part of {block}: an exception must be smaller than its cidr and inside it")]
    ExceptOutside {
        /// The exception as it was written.
        except: String,
        /// The block as it was written.
        block: String,
    },
    /// A protocol that does not exist.
    #[error("there is no protocol {0:?}: TCP, UDP and SCTP are")]
    UnknownProtocol(String),
    /// A number that is no port.
    #[error("{0} is no port: ports are 1 to 65535")]
    InvalidPort(i32),
    /// A name that no port can have.
    #[error(
        "{0:?} is no port name: at most 15 lower-case letters, digits and single '-', with a letter (a number is written without quotes)"
    )]
    InvalidPortName(String),
    /// The last port of a range lies before its first.
    #[error("the range ends at {end}, before its first port {first}")]
    EndBeforeFirst {
        /// The first port.
        first: u16,
        /// The last port.
        end: u16,
    },
    /// A range of one port where its API wants more.
    #[error("the range ends at its first port {0}: it must end later; one port is written number: {0}")]
    RangeOfOne(i32),
    /// A port by its name where peers are meant by their addresses.
    #[error("networks and nodes have no named ports: write a rule of its own for them, with numbers")]
    NamedPortOfAddresses,
    /// A range without a first port.
    #[error("a range needs its first port as a number in the field port")]
    EndWithoutFirst,
    /// Not an address.
    #[error("{0:?} is no IP address")]
    InvalidAddress(String),
    /// The labels of a template do not match the selector of its Deployment.
    #[error("the selector does not match the labels of the template")]
    SelectorMissesTemplate,
    /// A number of replicas that makes no sense in a directory of files.
    #[error("{replicas} replicas: 0 to {most} can be read from a file")]
    Replicas {
        /// The number as it was written.
        replicas: i32,
        /// The most that is taken.
        most: i32,
    },
    /// A list that is there and empty. It must never be taken for "all".
    #[error("is an empty list: leave it out, or name at least one")]
    EmptyList,
    /// An identity to which nothing belongs.
    #[error("an identity needs pods, networks or entities")]
    EmptyIdentity,
    /// A selection of pods that names nothing.
    #[error("namespaces, pods or serviceAccounts is needed; an empty selector ({{}}) means all")]
    EmptySelection,
    /// A policy that says nothing of either direction.
    #[error("ingress or egress is needed; an empty list isolates")]
    NoDirection,
    /// None, or more than one, of fields of which one is needed.
    #[error("needs exactly one of {0} that this version knows")]
    NotOnePeer(&'static str),
    /// An entity that does not exist.
    #[error("there is no entity {0:?}: Host, Nodes, World and ApiServer are")]
    UnknownEntity(String),
    /// A mode that does not exist.
    #[error("there is no mode {0:?}: Enforce and Audit are")]
    UnknownMode(String),
    /// An action that does not exist.
    #[error("there is no action {0:?}: {1} are")]
    UnknownAction(String, &'static str),
    /// A tier that does not exist.
    #[error("there is no tier {0:?}: Admin and Baseline are")]
    UnknownTier(String),
    /// A number that is no priority.
    #[error("{0} is no priority: priorities are 0 to 1000")]
    InvalidPriority(i32),
    /// A peer by domain names.
    #[error("peers by domain names are not supported yet: a rule that accepts matches nothing by it, any other denies all")]
    DomainNames,
    /// A port by number and by name.
    #[error("a port has a number or a name, not both")]
    NumberAndName,
    /// An address that nobody else can send to, or that is no address of the wire.
    #[error(
        "{0} cannot be reached by others: loopback, link-local, multicast, broadcast, unspecified and IPv4-mapped addresses are not taken"
    )]
    UnreachableAddress(IpAddr),
    /// An address of one family where the other is meant.
    #[error("{0} is of another family than {1} says")]
    OtherFamily(IpAddr, &'static str),
    /// Endpoints that are known by domain names.
    #[error("endpoints by domain name are not served: IPv4 and IPv6 addresses are")]
    DomainNameEndpoints,
    /// A value of a choice that does not exist.
    #[error("there is no {0:?} here: {1} are")]
    UnknownChoice(String, &'static str),
    /// The load balancer's addresses are for some sources only.
    #[error("is not served yet: the addresses that a load balancer has given are left out, rather than open to everybody")]
    SourceRanges,
    /// The same thing twice where one is needed.
    #[error("{0} stands here already")]
    Repeated(String),
    /// A field that means nothing as the object is otherwise.
    #[error("is only taken with {0}")]
    OnlyWith(&'static str),
    /// Two fields that say the same thing say different things.
    #[error("{0:?} must be what {1} says")]
    Differs(String, &'static str),
    /// A time for which a client cannot stay with its backend.
    #[error("{0} is no such time: 1 to 86400 seconds are")]
    InvalidAffinityTime(i32),
    /// A field that the kind does not have.
    #[error("there is no such field in {0}")]
    UnknownField(String),
    /// A field that this version knows, with a value of another form.
    #[error("its value has a form that this version does not know")]
    UnknownForm,
    /// The annotation of other kinds on one that has a field for it.
    #[error("an IdentityPolicy says its mode in spec.mode, and not by this annotation")]
    ModeByAnnotation,
    /// A value of the wrong type.
    #[error("{0}")]
    WrongType(String),
}

/// What a name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// One label of a DNS name (RFC 1123): namespaces.
    DnsLabel,
    /// A DNS name (RFC 1123): most objects.
    DnsName,
}

impl std::fmt::Display for NameRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DnsLabel => "at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
            Self::DnsName => "at most 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit",
        })
    }
}
