//! Name-value blocks: a zlib stream for each direction of a connection, with SPDY's own dictionary, and what is in it.
//!
//! Ours are written as stored blocks: all that a server sends are replies without headers, and a compressor would
//! cost 250 KiB for each connection to squeeze four zeros.

use flate2::{Decompress, FlushDecompress, Status};

/// Most bytes of a block after inflating.
pub const MAX_BLOCK: usize = 64 * 1024;
/// Most headers in a block.
pub const MAX_HEADERS: usize = 100;

/// The dictionary's first part: words, each after its length.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of it, without lengths.
const TAIL: [&str; 14] = [
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information",
    "204 No Content",
    "301 Moved Permanently",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "500 Internal Server Error",
    "501 Not Implemented",
    "503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,",
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];

/// The peer broke the protocol; the connection cannot go on, because compression has a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The headers of a stream, with lower-case names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

/// The reading end of a direction's zlib stream.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

/// The writing end.
#[derive(Debug, Default)]
pub(crate) struct Storer {
    begun: bool,
}

// === impl Headers ===

impl Headers {
    /// The value of `name`, in any case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, v)| v.as_str())
    }

    /// Reads an inflated block.
    pub(crate) fn parse(block: &[u8]) -> Result<Self, Malformed> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > MAX_HEADERS {
            return Err(Malformed("too many headers"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?.to_ascii_lowercase();
            if name.is_empty() || headers.iter().any(|(n, _)| *n == name) {
                return Err(Malformed("a header's name is empty or twice there"));
            }
            headers.push((name, text(&mut rest)?));
        }
        if !rest.is_empty() {
            return Err(Malformed("bytes after the headers"));
        }
        Ok(Self(headers))
    }

    #[cfg(test)]
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Self {
        let own = |(n, v): &(&str, &str)| (n.to_ascii_lowercase(), (*v).to_owned());
        Self(pairs.iter().map(own).collect())
    }

    pub(crate) fn to_block(&self) -> Vec<u8> {
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = length(self.0.len()).to_vec();
        for part in self.0.iter().flat_map(|(n, v)| [n, v]) {
            block.extend(length(part.len()));
            block.extend(part.as_bytes());
        }
        block
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, Malformed> {
    let (n, more) = rest
        .split_first_chunk()
        .ok_or(Malformed("headers end early"))?;
    *rest = more;
    usize::try_from(u32::from_be_bytes(*n)).map_err(|_| Malformed("headers end early"))
}

fn text(rest: &mut &[u8]) -> Result<String, Malformed> {
    let length = number(rest)?;
    let (text, more) = rest
        .split_at_checked(length)
        .ok_or(Malformed("headers end early"))?;
    *rest = more;
    String::from_utf8(text.to_vec()).map_err(|_| Malformed("a header is no text"))
}

// === impl Inflater, Storer ===

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Inflates the part of the stream that one frame carries.
    pub(crate) fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut block = Vec::new();
        let mut part = [0u8; 4096];
        loop {
            let (was_in, was_out) = (self.0.total_in(), self.0.total_out());
            let done = self.0.decompress(input, &mut part, FlushDecompress::Sync);
            let length = |n: u64| usize::try_from(n).map_err(|_| Malformed("headers are too long"));
            let (read, made) = (
                length(self.0.total_in() - was_in)?,
                length(self.0.total_out() - was_out)?,
            );
            input = input.get(read..).unwrap_or_default();
            block.extend(part.get(..made).unwrap_or_default());
            if block.len() > MAX_BLOCK {
                return Err(Malformed("headers are too long"));
            }
            match done {
                Err(e) if e.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary());
                    set.map_err(|_| Malformed("headers are of another dictionary"))?;
                }
                Err(_) => return Err(Malformed("headers are not compressed rightly")),
                Ok(Status::StreamEnd) => return Err(Malformed("the headers' stream ended")),
                Ok(_) if made < part.len() && input.is_empty() => return Ok(block),
                Ok(_) if read == 0 && made == 0 => {
                    return Err(Malformed("headers are not compressed rightly"));
                }
                Ok(_) => {}
            }
        }
    }
}

impl Storer {
    /// The part of the stream that carries `block`: stored, then an empty block as a flush ends with.
    pub(crate) fn store(&mut self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + 16);
        if !self.begun {
            // Deflate with a window of 32 KiB, no dictionary, check bits.
            out.extend([0x78, 0x01]);
            self.begun = true;
        }
        let empty: &[u8] = &[];
        for part in block.chunks(usize::from(u16::MAX)).chain([empty]) {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(part);
        }
        out
    }
}

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS {
        all.extend(u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        all.extend(word.as_bytes());
    }
    for text in TAIL {
        all.extend(text.as_bytes());
    }
    all
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// What a real client does.
    fn compress(compressor: &mut Compress, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + 1024);
        compressor
            .compress_vec(block, &mut out, FlushCompress::Sync)
            .unwrap();
        out
    }

    fn client() -> Compress {
        let mut c = Compress::new(Compression::best(), true);
        let id = c.set_dictionary(&dictionary()).unwrap();
        assert_eq!(
            id, 0xe3c6_a7c2,
            "the specification's dictionary has this checksum"
        );
        c
    }

    #[test]
    fn blocks_are_read_one_after_the_other() {
        let (mut client, mut inflater) = (client(), Inflater::new());
        for n in 0..50 {
            let sent = Headers::new(&[("streamType", "stdin"), ("port", &n.to_string())]);
            let block = inflater
                .inflate(&compress(&mut client, &sent.to_block()))
                .unwrap();
            let got = Headers::parse(&block).unwrap();
            assert_eq!(got, sent);
            assert_eq!(got.get("StreamType"), Some("stdin"));
        }
    }

    #[test]
    fn what_is_stored_is_inflated() {
        let (mut storer, mut inflater) = (Storer::default(), Inflater::new());
        for n in [0, 1, 4096, 60_000] {
            let block = vec![7; n];
            assert_eq!(inflater.inflate(&storer.store(&block)).unwrap(), block);
        }
    }

    #[test]
    fn limits_hold() {
        let (mut c, mut inflater) = (client(), Inflater::new());
        let fits = vec![0; MAX_BLOCK];
        assert_eq!(
            inflater.inflate(&compress(&mut c, &fits)).unwrap().len(),
            MAX_BLOCK
        );
        let bomb = vec![0; MAX_BLOCK + 1];
        let e = inflater.inflate(&compress(&mut c, &bomb)).unwrap_err();
        assert_eq!(e, Malformed("headers are too long"));

        let names: Vec<_> = (0..=MAX_HEADERS).map(|n| n.to_string()).collect();
        let many: Vec<_> = names.iter().map(|n| (n.as_str(), "")).collect();
        Headers::parse(&Headers::new(&many[1..]).to_block()).unwrap();
        Headers::parse(&Headers::new(&many).to_block()).unwrap_err();
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &[][..],
            &[0, 0, 0],
            &[0, 0, 0, 1],
            &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0],
            &[0xff, 0xff, 0xff, 0xff],
        ] {
            Headers::parse(bad).unwrap_err();
        }
        let twice = Headers(vec![
            ("a".into(), String::new()),
            ("a".into(), String::new()),
        ]);
        Headers::parse(&twice.to_block()).unwrap_err();
        Inflater::new().inflate(b"not zlib").unwrap_err();
        // A dictionary that nobody knows.
        Inflater::new()
            .inflate(&[0x78, 0xbb, 1, 2, 3, 4, 0])
            .unwrap_err();
    }

    proptest::proptest! {
        #[test]
        fn anything_is_judged_without_panic(bytes: Vec<u8>) {
            let _ = Headers::parse(&bytes);
            let _ = Inflater::new().inflate(&bytes);
        }
    }
}
