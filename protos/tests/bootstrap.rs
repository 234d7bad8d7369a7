//! The messages of a shim's start, as they go through its stdin and stdout.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;

use corten_protos::any;
use corten_protos::containerd::runc;
use corten_protos::containerd::runtime::bootstrap::v1::{
    BootstrapParams, BootstrapResult, Extension, LogLevel,
};
use prost::Message;

#[test]
fn parameters_come_back() {
    let options = runc::v1::Options {
        systemd_cgroup: true,
        ..Default::default()
    };
    let params = BootstrapParams {
        instance_id: "c1".into(),
        namespace: "default".into(),
        log_level: LogLevel::Debug.into(),
        containerd_version: "2.4.2".into(),
        containerd_ttrpc_address: "/run/x.sock.ttrpc".into(),
        containerd_grpc_address: "/run/x.sock".into(),
        containerd_binary: "/usr/bin/containerd".into(),
        extensions: vec![Extension {
            value: Some(any::pack(&options)),
        }],
        socket_dir: Some("/run/s".into()),
    };
    let back = BootstrapParams::decode(params.encode_to_vec().as_slice()).unwrap();
    assert_eq!(back, params);
    let extension = back.extensions[0].value.as_ref().unwrap();
    assert_eq!(any::unpack::<runc::v1::Options>(extension), Ok(options));
}

#[test]
fn the_bytes_are_the_ones_of_the_protocol() {
    let params = BootstrapParams {
        instance_id: "c".into(),
        log_level: LogLevel::Debug.into(),
        ..Default::default()
    };
    // Field 1 is text; field 3 is -4 as a varint, which takes ten bytes.
    let bytes = [&[0x0a, 1, b'c', 0x18, 0xfc][..], &[0xff; 8], &[0x01]].concat();
    assert_eq!(params.encode_to_vec(), bytes);
    assert_eq!(BootstrapParams::decode(bytes.as_slice()), Ok(params));
}

#[test]
fn an_empty_socket_directory_is_not_an_absent_one() {
    let absent = BootstrapParams::default();
    let empty = BootstrapParams {
        socket_dir: Some(String::new()),
        ..Default::default()
    };
    assert!(absent.encode_to_vec().is_empty());
    assert_eq!(empty.encode_to_vec(), [0x4a, 0]);
    assert_eq!(BootstrapParams::decode([0x4a, 0].as_slice()), Ok(empty));
}

#[test]
fn the_answer_comes_back() {
    let result = BootstrapResult {
        version: 3,
        address: "unix:///run/s/c1.sock".into(),
        protocol: "ttrpc".into(),
        capabilities: vec![0],
        metadata: BTreeMap::from([("k".into(), "v".into())]),
        extensions: Vec::new(),
    };
    assert_eq!(
        BootstrapResult::decode(result.encode_to_vec().as_slice()),
        Ok(result)
    );
}
