//! The whole server over real sockets, with a client of each wire. `client-go` is the judge by hand; these keep what
//! it found good.

mod client;
mod fixture;
mod ports;
mod remote;
mod server;
