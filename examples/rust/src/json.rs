//! JSON documents, which the C client has parsed.

use std::ffi::CStr;

use crate::bundle::{error, Error};
use crate::ffi;

/// A value in a document.
#[derive(Clone, Copy)]
pub struct Json<'a>(pub &'a ffi::Json);

impl<'a> Json<'a> {
    /// A member of an object.
    pub fn get(self, key: &str) -> Result<Json<'a>, Error> {
        let found = self.children().find(|child| child.key() == Some(key));
        found.map_or_else(|| error(format!("goldens.json lacks {key}")), Ok)
    }

    /// The elements of an array, or the members of an object.
    pub fn children(self) -> impl Iterator<Item = Json<'a>> {
        // SAFETY: The document lives as long as 'a; its pointers are null or right.
        let first = unsafe { self.0.child.as_ref() };
        std::iter::successors(first, |json| unsafe { json.next.as_ref() }).map(Json)
    }

    /// The name of a member.
    pub fn key(self) -> Option<&'a str> {
        text(self.0.key)
    }

    pub fn text(self) -> Result<&'a str, Error> {
        text(self.0.text).map_or_else(|| error("goldens.json: a text was expected"), Ok)
    }

    pub fn number(self) -> f64 {
        self.0.number
    }

    pub fn integers(self) -> Vec<i64> {
        self.children().map(|child| child.number() as i64).collect()
    }
}

fn text<'a>(pointer: *const std::ffi::c_char) -> Option<&'a str> {
    // SAFETY: Null, or a text that ends with a zero and lives as long as its document.
    (!pointer.is_null())
        .then(|| unsafe { CStr::from_ptr(pointer) }.to_str().ok())
        .flatten()
}
