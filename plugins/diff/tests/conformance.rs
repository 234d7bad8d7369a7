//! The walking differ under the suite.

use std::sync::Arc;

use corten_core::diff::Differ;
use corten_diff::Walking;

#[tokio::test]
async fn walking_conforms() {
    corten_testsuite::differ::suite(|content| async move {
        Arc::new(Walking::new(content)) as Arc<dyn Differ>
    })
    .await;
}
