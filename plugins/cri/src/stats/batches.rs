//! A whole list as a stream of messages, none too large for a client.

use prost::Message;

use crate::service::Answers;

/// Most items of one message.
pub const MAX_ITEMS: usize = 5000;
/// Most bytes of the items of one message, unless one item alone has more. Half of what clients take.
pub const MAX_BYTES: usize = 8 << 20;

/// Streams `items`; an empty list is an empty stream.
pub(crate) fn batched<T, M>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Answers<M>
where
    T: Message + 'static,
    M: Send + 'static,
{
    let mut rest = items.into_iter().peekable();
    let batches = std::iter::from_fn(move || {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(item) = rest.peek() {
            bytes += item.encoded_len();
            if batch.len() == MAX_ITEMS || (bytes > MAX_BYTES && !batch.is_empty()) {
                break;
            }
            batch.extend(rest.next());
        }
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    Box::pin(futures::stream::iter(batches))
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::KeyValue;
    use futures::StreamExt;

    use super::*;

    async fn sizes(item: usize, n: usize) -> Vec<usize> {
        let item = KeyValue {
            key: "k".into(),
            value: vec![0; item],
        };
        batched(vec![item; n], |b| b.len())
            .map(|b| b.unwrap())
            .collect()
            .await
    }

    #[tokio::test]
    async fn neither_items_nor_bytes_are_too_many() {
        assert!(sizes(0, 0).await.is_empty());
        assert_eq!(sizes(0, MAX_ITEMS).await, [MAX_ITEMS]);
        assert_eq!(sizes(0, MAX_ITEMS + 1).await, [MAX_ITEMS, 1]);
        assert_eq!(sizes(3 << 20, 3).await, [2, 1]);
        assert_eq!(sizes(MAX_BYTES + 1, 2).await, [1, 1]);
    }
}
