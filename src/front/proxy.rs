//! The PROXY protocol, version 2, as a sender: the client's address in front of its first byte.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// Stream over IPv4 and IPv6, with the length of their address block.
const TCP4: (u8, u16) = (0x11, 12);
const TCP6: (u8, u16) = (0x21, 36);

/// The header for a session. An IPv4 client of a dual-stack socket is told as what it is.
pub(super) fn header(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    out.push(PROXY);
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            out.push(TCP4.0);
            out.extend(TCP4.1.to_be_bytes());
            out.extend(a.octets());
            out.extend(b.octets());
        }
        (a, b) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.push(TCP6.0);
            out.extend(TCP6.1.to_be_bytes());
            out.extend(six(a).octets());
            out.extend(six(b).octets());
        }
    }
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_told_as_ipv4() {
        let header = header("[::ffff:192.0.2.1]:56324".parse().unwrap(), "[::ffff:198.51.100.7]:443".parse().unwrap());
        let mut want = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        want.extend([192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(header, want);
    }

    #[test]
    fn an_ipv6_client_is_told_as_such() {
        let header = header("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:80".parse().unwrap());
        assert_eq!((header[12], header[13], header.len()), (0x21, 0x21, 16 + 36));
        assert_eq!(header[16..32], "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
}
