//! TLS streams against the client of rustls, without sockets.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion, version,
};

use super::*;

fn pair(versions: &[&'static SupportedProtocolVersion]) -> (TlsStream, ClientConnection) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate.clone()], key))
        .expect("a server's configuration");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a root");
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("a client's configuration")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let client = ClientConnection::new(Arc::new(client), name).expect("a client");
    (TlsStream::new(Arc::new(server)).expect("a server"), client)
}

/// What the client sends now, in pieces of `piece` bytes, and what the server answers at once; the plaintext.
fn exchange(server: &mut TlsStream, client: &mut ClientConnection, piece: usize) -> Vec<u8> {
    let (mut plain, mut sent) = (Vec::new(), Vec::new());
    while client.wants_write() {
        client.write_tls(&mut sent).expect("memory takes it");
    }
    for piece in sent.chunks_mut(piece) {
        server.receive(piece, &mut plain).expect("the client keeps to the protocol");
    }
    let mut answer = Vec::new();
    server.seal(&[], &mut answer).expect("it can be sent");
    give(client, &answer);
    plain
}

fn give(client: &mut ClientConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory gives it");
        client.process_new_packets().expect("the server keeps to the protocol");
    }
}

fn establish(server: &mut TlsStream, client: &mut ClientConnection, piece: usize) {
    while !server.is_established() || client.is_handshaking() {
        exchange(server, client, piece);
    }
}

#[test]
fn bytes_in_any_pieces_become_the_clients_plaintext_and_leave_no_memory() {
    for version in [&version::TLS12, &version::TLS13] {
        for piece in [1, 7, 100_000] {
            let (mut server, mut client) = pair(&[version]);
            establish(&mut server, &mut client, piece);
            client.writer().write_all(&[b'x'; 20_000]).expect("the client has memory");
            assert_eq!(exchange(&mut server, &mut client, piece), [b'x'; 20_000]);
            assert_eq!(
                (server.incoming.capacity(), server.outgoing.capacity()),
                (0, 0),
                "in pieces of {piece}"
            );
        }
    }
}

#[test]
fn a_flush_of_any_size_goes_out_in_as_few_records_as_can_be() {
    for version in [&version::TLS12, &version::TLS13] {
        let (mut server, mut client) = pair(&[version]);
        establish(&mut server, &mut client, 1000);
        for (bytes, records) in [(1, 1), (RECORD_BYTES, 1), (RECORD_BYTES + 1, 2), (100_000, 7)] {
            let mut out = Vec::new();
            server.seal(&vec![b'y'; bytes], &mut out).expect("it can be sent");
            assert!(out.len() <= bytes + records * RECORD_OVERHEAD && out.len() > bytes + (records - 1) * 20);
            let mut heard = vec![0; bytes];
            let mut done = 0;
            while done < bytes {
                let before = done;
                let mut rest = out.as_slice();
                if !rest.is_empty() {
                    client.read_tls(&mut rest).expect("memory gives it");
                    out = rest.to_vec();
                    client.process_new_packets().expect("the server keeps to the protocol");
                }
                while let Ok(read @ 1..) = client.reader().read(&mut heard[done..]) {
                    done += read;
                }
                assert!(done > before || !out.is_empty(), "{done} of {bytes} bytes came");
            }
            assert!(heard.iter().all(|byte| *byte == b'y'));
        }
    }
}

#[test]
fn plaintext_before_the_handshake_is_over_goes_nowhere() {
    let (mut server, _) = pair(&[&version::TLS13]);
    let mut out = Vec::new();
    server.seal(b"secret", &mut out).expect("nothing fails");
    assert!(out.is_empty() && !server.say_goodbye() && !server.has_output());
}

#[test]
fn both_ends_say_goodbye_once() {
    for version in [&version::TLS12, &version::TLS13] {
        let (mut server, mut client) = pair(&[version]);
        establish(&mut server, &mut client, 1000);
        client.send_close_notify();
        let (mut sent, mut plain) = (Vec::new(), Vec::new());
        client.write_tls(&mut sent).expect("memory takes it");
        assert_eq!(server.receive(&mut sent, &mut plain), Ok(Peer::HasFinished));
        let mut out = Vec::new();
        server.seal(b"the last words", &mut out).expect("it can be sent");
        assert!(server.say_goodbye() && !server.say_goodbye());
        server.seal(b"too late", &mut out).expect("nothing fails");
        give(&mut client, &out);
        let mut heard = Vec::new();
        client.reader().read_to_end(&mut heard).expect("close_notify ends it in order");
        assert_eq!(heard, b"the last words");
    }
}

#[test]
fn what_is_no_tls_is_answered_by_an_alert() {
    for hostile in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0; 40]] {
        let (mut server, _) = pair(&[&version::TLS13]);
        let mut plain = Vec::new();
        assert!(server.receive(&mut hostile.to_vec(), &mut plain).is_err(), "{hostile:?}");
        assert!(plain.is_empty());
        let mut out = Vec::new();
        server.seal(&[], &mut out).expect("nothing fails");
        assert_eq!(out.first(), Some(&0x15), "an alert: {out:?}");
    }
}

#[test]
fn a_damaged_record_ends_it_and_a_handshake_without_end_too() {
    let (mut server, mut client) = pair(&[&version::TLS13]);
    establish(&mut server, &mut client, 1000);
    client.writer().write_all(b"hello").expect("the client has memory");
    let (mut sent, mut plain) = (Vec::new(), Vec::new());
    client.write_tls(&mut sent).expect("memory takes it");
    *sent.last_mut().expect("a record") ^= 1;
    assert_eq!(server.receive(&mut sent, &mut plain), Err(Error::DecryptError));
    assert!(plain.is_empty() && server.has_output());

    let (mut server, _) = pair(&[&version::TLS13]);
    // A ClientHello that declares 64 KiB, in records of one byte each.
    let mut record = vec![0x16, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    let endless = (0..200_000).any(|_| {
        let refused = server.receive(&mut record, &mut plain).is_err();
        record = vec![0x16, 3, 1, 0, 1, 0];
        assert!(server.incoming.len() <= limits::TLS_INCOMPLETE_BYTES + 16);
        refused
    });
    assert!(endless, "it is cut off");
}
