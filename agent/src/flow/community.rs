//! Community ID v1, seed 0: the hash by which tools agree on a flow.
//!
//! <https://github.com/corelight/community-id-spec>: SHA-1 over seed, ordered addresses, protocol, ordered ports; for the two
//! ICMPs type and code take the ports' place, and a request is matched with its reply.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// One side of a flow: address and port. Of ICMP the source's port is the type, the destination's the code.
pub type Side = (IpAddr, u16);

/// The Community ID of a flow.
pub fn community_id(protocol: u8, source: Side, destination: Side) -> String {
    let (source, destination, one_way) = sides(protocol, source, destination);
    let swap = !one_way && source > destination;
    let (first, second) = if swap { (destination, source) } else { (source, destination) };
    let mut hash = Sha1::new();
    hash.update(0u16.to_be_bytes());
    for side in [&first, &second] {
        match side.0 {
            IpAddr::V4(ip) => hash.update(ip.octets()),
            IpAddr::V6(ip) => hash.update(ip.octets()),
        }
    }
    hash.update([protocol, 0]);
    if has_ports(protocol) {
        hash.update(first.1.to_be_bytes());
        hash.update(second.1.to_be_bytes());
    }
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

/// Whether the protocol has ports, or types that stand for them.
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, ICMP | TCP | UDP | ICMPV6 | SCTP)
}

/// The sides as they are hashed, and whether their order is fixed.
fn sides(protocol: u8, source: Side, destination: Side) -> (Side, Side, bool) {
    let counterpart = match protocol {
        ICMP => icmp4_counterpart,
        ICMPV6 => icmp6_counterpart,
        _ => return (source, destination, false),
    };
    match counterpart(source.1) {
        Some(other) => (source, (destination.0, other), false),
        None => (source, destination, true),
    }
}

/// The type that answers an ICMP type, if there is one.
fn icmp4_counterpart(kind: u16) -> Option<u16> {
    Some(match kind {
        0 => 8,
        8 => 0,
        9 => 10,
        10 => 9,
        13 => 14,
        14 => 13,
        15 => 16,
        16 => 15,
        17 => 18,
        18 => 17,
        _ => return None,
    })
}

/// The type that answers an ICMPv6 type, if there is one.
fn icmp6_counterpart(kind: u16) -> Option<u16> {
    Some(match kind {
        128 => 129,
        129 => 128,
        130 => 131,
        131 => 130,
        133 => 134,
        134 => 133,
        135 => 136,
        136 => 135,
        139 => 140,
        140 => 139,
        144 => 145,
        145 => 144,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(protocol: u8, source: &str, sport: u16, destination: &str, dport: u16) -> String {
        community_id(protocol, (source.parse().unwrap(), sport), (destination.parse().unwrap(), dport))
    }

    /// The baseline that the specification publishes for the default seed. The second number of a mapped ICMP type is its counterpart there; here it is
    /// the code, which does not count.
    #[test]
    fn published_vectors() {
        let cases = [
            (ICMPV6, "fe80::200:86ff:fe05:80da", 135, "fe80::260:97ff:fe07:69ea", 136, "dGHyGvjMfljg6Bppwm3bg0LO8TY="),
            (ICMPV6, "fe80::260:97ff:fe07:69ea", 136, "fe80::200:86ff:fe05:80da", 135, "dGHyGvjMfljg6Bppwm3bg0LO8TY="),
            (ICMPV6, "fe80::260:97ff:fe07:69ea", 135, "fe80::200:86ff:fe05:80da", 136, "zavyT/cezQr1fmImYCwYnMXbgck="),
            (ICMPV6, "fe80::200:86ff:fe05:80da", 136, "fe80::260:97ff:fe07:69ea", 135, "zavyT/cezQr1fmImYCwYnMXbgck="),
            (ICMPV6, "3ffe:501:1800:2345::2", 3, "3ffe:507:0:1:200:86ff:fe05:80da", 0, "2ObVBgIn28oZvibYZhZMBgh7WdQ="),
            (ICMPV6, "3ffe:501:410:0:2c0:dfff:fe47:33e", 1, "3ffe:507:0:1:200:86ff:fe05:80da", 4, "hLZd0XGWojozrvxqE0dWB1iM6R0="),
            (ICMPV6, "3ffe:507:0:1:200:86ff:fe05:80da", 128, "3ffe:501:0:1001::2", 129, "+TW+HtLHvV1xnGhV1lv7XoJrqQg="),
            (ICMPV6, "3ffe:501:0:1001::2", 129, "3ffe:507:0:1:200:86ff:fe05:80da", 128, "+TW+HtLHvV1xnGhV1lv7XoJrqQg="),
            (ICMPV6, "fe80::200:86ff:fe05:80da", 133, "ff02::2", 134, "hO+sN4H+MG5MY/8hIrXPqc4ZQz0="),
            (ICMPV6, "fe80::260:97ff:fe07:69ea", 134, "ff02::1", 133, "pkvHqCL88/tg1k4cPigmZXUtL00="),
            (ICMP, "192.168.0.89", 8, "192.168.0.1", 0, "X0snYXpgwiv9TZtqg64sgzUn6Dk="),
            (ICMP, "192.168.0.1", 0, "192.168.0.89", 8, "X0snYXpgwiv9TZtqg64sgzUn6Dk="),
            (ICMP, "10.0.0.1", 11, "10.0.0.2", 0, "YHxtAirCG//0OzkcVAukqKQN9xM="),
            (TCP, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943, "2607:f8b0:400c:c03::1a", 25, "/qFaeAR+gFe1KYjMzVDsMv+wgU4="),
            (TCP, "2607:f8b0:400c:c03::1a", 25, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943, "/qFaeAR+gFe1KYjMzVDsMv+wgU4="),
            (SCTP, "192.168.170.8", 7, "192.168.170.56", 7, "MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
            (SCTP, "192.168.170.56", 7, "192.168.170.8", 7, "MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
            (TCP, "128.232.110.120", 34855, "66.35.250.204", 80, "LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (TCP, "66.35.250.204", 80, "128.232.110.120", 34855, "LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (UDP, "192.168.1.52", 54585, "8.8.8.8", 53, "d/FP5EW3wiY1vCndhwleRRKHowQ="),
            (UDP, "8.8.8.8", 53, "192.168.1.52", 54585, "d/FP5EW3wiY1vCndhwleRRKHowQ="),
            (46, "10.1.12.1", 0, "10.1.12.2", 0, "KHlLkgoJW7ifUTyTSgyVfkFHzKw="),
            (46, "10.1.12.2", 0, "10.1.12.1", 0, "KHlLkgoJW7ifUTyTSgyVfkFHzKw="),
        ];
        for (protocol, source, sport, destination, dport, expected) in cases {
            let got = id(protocol, source, sport, destination, dport);
            assert_eq!(got, format!("1:{expected}"), "{source}:{sport} {destination}:{dport}");
        }
    }
}
