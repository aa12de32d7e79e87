//! How a build describes its boundary types to builds that come after it.

/// A boundary type as a running build knows it, for builds that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// Its name.
    pub name: &'static str,
    /// Bytes of a value.
    pub size: usize,
    /// What it is made of, in order.
    pub fields: &'static [Field],
}

/// A field of a boundary [`Type`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type as written: a number, an array of numbers, or another boundary type.
    pub kind: &'static str,
    /// Where it begins.
    pub offset: usize,
}

/// Declares boundary types, derives what each needs, and lists them in `DECLARED`.
macro_rules! boundary {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])* $(#[cfg($($cfg:tt)*)])? pub $field:ident: $ty:ty, )*
        } = $size:expr;
    )*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
            pub struct $name { $( $(#[doc = $doc])* $(#[cfg($($cfg)*)])? pub $field: $ty, )* }
            const _: () = assert!(size_of::<$name>() == $size);
            impl $name {
                /// All bytes zero.
                pub const ZERO: Self = zerocopy::transmute!([0u8; $size]);
            }
        )*
        /// The types declared here.
        pub(super) const DECLARED: &[Type] = &[$(Type {
            name: stringify!($name),
            size: size_of::<$name>(),
            fields: &[$(
                $(#[cfg($($cfg)*)])?
                Field { name: stringify!($field), kind: stringify!($ty), offset: core::mem::offset_of!($name, $field) },
            )*],
        },)*];
    };
}

pub(super) use boundary;

/// The types of two lists.
pub(super) const fn joined<const N: usize>(first: &[Type], second: &[Type]) -> [Type; N] {
    assert!(N == first.len() + second.len());
    let mut all = [first[0]; N];
    let mut t = 1;
    while t < N {
        all[t] = if t < first.len() { first[t] } else { second[t - first.len()] };
        t += 1;
    }
    all
}

/// FNV-1a over the names, types and offsets of `types`.
pub(super) const fn hash(types: &[Type]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut t = 0;
    while t < types.len() {
        hash = fnv(hash, types[t].name);
        let mut f = 0;
        while f < types[t].fields.len() {
            let field = &types[t].fields[f];
            hash = fnv(fnv(hash, field.name), field.kind);
            hash = (hash ^ field.offset as u64).wrapping_mul(0x100_0000_01b3);
            f += 1;
        }
        t += 1;
    }
    hash
}

const fn fnv(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}
