//! The only room that talks to the kernel: load, attach, pin, adopt, fill maps, read events, sweep flows,
//! prove coverage. It never touches what is not Sekisho's.
