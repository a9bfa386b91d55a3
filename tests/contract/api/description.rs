//! docs/openapi.json and the server say the same.

use serde_json::Value;

use super::{WITH_KEY, call};
use crate::harness::server::Server;

const DESCRIPTION: &str = include_str!("../../../docs/openapi.json");

#[test]
fn every_call_of_the_description_exists_and_no_other_method_does() {
    let server = Server::start(&WITH_KEY);
    let description: Value = serde_json::from_str(DESCRIPTION).expect("the description is JSON");
    let paths = description["paths"].as_object().expect("paths");
    assert!(paths.len() >= 14, "the description has all paths");
    for (path, methods) in paths.iter().filter(|(path, _)| path.starts_with("/api/")) {
        let concrete =
            path.replace("{instanceId}", "nobody").replace("{roomId}", "r").replace("{userId}", "u");
        for method in ["get", "post", "put", "delete", "patch"] {
            let answer = call(server.port, &method.to_uppercase(), &concrete, "");
            let described = methods.get(method).is_some();
            assert_eq!(answer.status != 405, described, "{method} {path}: {}", answer.body);
            if described {
                let statuses = methods[method]["responses"].as_object().expect("responses");
                let status = answer.status.to_string();
                assert!(statuses.contains_key(&status), "{method} {path} answers {status}: {}", answer.body);
            }
        }
    }
}
