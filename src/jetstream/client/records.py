"""The types of common records, as their lexicons describe them.

Repositories are not validated: a record of any collection can lack a key, or have another type in it. A key
that a lexicon requires is a key that a type checker expects here; `NotRequired` is what it calls optional.
Unions may have more members in the future. `createdAt` is a time in RFC 3339 that the author has chosen.

Source: the lexicons app.bsky.* and chat.bsky.*.
"""

from typing import Literal, NotRequired, TypeAlias, TypedDict

_BlobRef = TypedDict("_BlobRef", {"$link": str})


class BlobRef(_BlobRef):
    """A link to bytes by their CID."""


_Blob = TypedDict("_Blob", {"$type": Literal["blob"]})


class Blob(_Blob):
    """An image, a video or another file of the account. Its bytes are on the account's PDS."""

    ref: BlobRef
    mimeType: str
    size: int


class StrongRef(TypedDict):
    """com.atproto.repo.strongRef: a version of a record."""

    uri: str
    cid: str


class SelfLabel(TypedDict):
    """One label of `SelfLabels`."""

    val: str


_SelfLabels = TypedDict("_SelfLabels", {"$type": Literal["com.atproto.label.defs#selfLabels"]})


class SelfLabels(_SelfLabels):
    """Labels that the author has given to a record."""

    values: list[SelfLabel]


class ByteSlice(TypedDict):
    """app.bsky.richtext.facet#byteSlice: a part of a text, in bytes of UTF-8."""

    byteStart: int
    byteEnd: int


_Mention = TypedDict("_Mention", {"$type": Literal["app.bsky.richtext.facet#mention"]})


class Mention(_Mention):
    """A part of a text that mentions an account."""

    did: str


_Link = TypedDict("_Link", {"$type": Literal["app.bsky.richtext.facet#link"]})


class Link(_Link):
    """A part of a text that is a link."""

    uri: str


_Tag = TypedDict("_Tag", {"$type": Literal["app.bsky.richtext.facet#tag"]})


class Tag(_Tag):
    """A part of a text that is a hashtag, without `#`."""

    tag: str


class Facet(TypedDict):
    """app.bsky.richtext.facet: what a part of a text is."""

    index: ByteSlice
    features: list[Mention | Link | Tag]


class AspectRatio(TypedDict):
    """app.bsky.embed.defs#aspectRatio."""

    width: int
    height: int


class Image(TypedDict):
    """app.bsky.embed.images#image."""

    image: Blob
    alt: str
    aspectRatio: NotRequired[AspectRatio]


_Images = TypedDict("_Images", {"$type": Literal["app.bsky.embed.images"]})


class Images(_Images):
    """Images in a post, up to four."""

    images: list[Image]


class Caption(TypedDict):
    """app.bsky.embed.video#caption: subtitles in one language."""

    lang: str
    file: Blob


_Video = TypedDict("_Video", {"$type": Literal["app.bsky.embed.video"]})


class Video(_Video):
    """A video in a post."""

    video: Blob
    captions: NotRequired[list[Caption]]
    alt: NotRequired[str]
    aspectRatio: NotRequired[AspectRatio]


class ExternalLink(TypedDict):
    """app.bsky.embed.external#external: a page on the web."""

    uri: str
    title: str
    description: str
    thumb: NotRequired[Blob]


_External = TypedDict("_External", {"$type": Literal["app.bsky.embed.external"]})


class External(_External):
    """A card of a page on the web, in a post."""

    external: ExternalLink


_Quote = TypedDict("_Quote", {"$type": Literal["app.bsky.embed.record"]})


class Quote(_Quote):
    """Another record in a post: a quoted post, a list, a feed."""

    record: StrongRef


_QuoteWithMedia = TypedDict("_QuoteWithMedia", {"$type": Literal["app.bsky.embed.recordWithMedia"]})


class QuoteWithMedia(_QuoteWithMedia):
    """Another record and media in a post."""

    record: Quote
    media: Images | Video | External


class ReplyRef(TypedDict):
    """app.bsky.feed.post#replyRef: what a post replies to."""

    root: StrongRef
    parent: StrongRef


Embed: TypeAlias = Images | Video | External | Quote | QuoteWithMedia


_Post = TypedDict("_Post", {"$type": Literal["app.bsky.feed.post"]})


class Post(_Post):
    """A post."""

    text: str
    createdAt: str
    facets: NotRequired[list[Facet]]
    reply: NotRequired[ReplyRef]
    embed: NotRequired[Embed]
    langs: NotRequired[list[str]]
    labels: NotRequired[SelfLabels]
    tags: NotRequired[list[str]]


_Like = TypedDict("_Like", {"$type": Literal["app.bsky.feed.like"]})


class Like(_Like):
    """A like of a post or a feed."""

    subject: StrongRef
    createdAt: str
    via: NotRequired[StrongRef]


_Repost = TypedDict("_Repost", {"$type": Literal["app.bsky.feed.repost"]})


class Repost(_Repost):
    """A repost of a post."""

    subject: StrongRef
    createdAt: str
    via: NotRequired[StrongRef]


_MentionRule = TypedDict("_MentionRule", {"$type": Literal["app.bsky.feed.threadgate#mentionRule"]})


class MentionRule(_MentionRule):
    """Accounts that the post mentions may reply."""


_FollowerRule = TypedDict("_FollowerRule", {"$type": Literal["app.bsky.feed.threadgate#followerRule"]})


class FollowerRule(_FollowerRule):
    """Accounts that follow the author may reply."""


_FollowingRule = TypedDict("_FollowingRule", {"$type": Literal["app.bsky.feed.threadgate#followingRule"]})


class FollowingRule(_FollowingRule):
    """Accounts that the author follows may reply."""


_ListRule = TypedDict("_ListRule", {"$type": Literal["app.bsky.feed.threadgate#listRule"]})


class ListRule(_ListRule):
    """Accounts on a list may reply."""

    list: str


_Threadgate = TypedDict("_Threadgate", {"$type": Literal["app.bsky.feed.threadgate"]})


class Threadgate(_Threadgate):
    """Which accounts may reply to a post. Its record key is that of the post."""

    post: str
    createdAt: str
    allow: NotRequired[list[MentionRule | FollowerRule | FollowingRule | ListRule]]
    hiddenReplies: NotRequired[list[str]]


_DisableRule = TypedDict("_DisableRule", {"$type": Literal["app.bsky.feed.postgate#disableRule"]})


class DisableRule(_DisableRule):
    """Nobody may quote the post."""


_Postgate = TypedDict("_Postgate", {"$type": Literal["app.bsky.feed.postgate"]})


class Postgate(_Postgate):
    """Whether a post may be quoted. Its record key is that of the post."""

    post: str
    createdAt: str
    detachedEmbeddingUris: NotRequired[list[str]]
    embeddingRules: NotRequired[list[DisableRule]]


_Generator = TypedDict("_Generator", {"$type": Literal["app.bsky.feed.generator"]})


class Generator(_Generator):
    """A custom feed."""

    did: str
    displayName: str
    createdAt: str
    description: NotRequired[str]
    descriptionFacets: NotRequired[list[Facet]]
    avatar: NotRequired[Blob]
    acceptsInteractions: NotRequired[bool]
    labels: NotRequired[SelfLabels]
    contentMode: NotRequired[str]


_Follow = TypedDict("_Follow", {"$type": Literal["app.bsky.graph.follow"]})


class Follow(_Follow):
    """A follow. The subject is a DID."""

    subject: str
    createdAt: str
    via: NotRequired[StrongRef]


_Block = TypedDict("_Block", {"$type": Literal["app.bsky.graph.block"]})


class Block(_Block):
    """A block of an account. The subject is a DID."""

    subject: str
    createdAt: str


_List = TypedDict("_List", {"$type": Literal["app.bsky.graph.list"]})


class List(_List):
    """A list of accounts. The purpose says what for: app.bsky.graph.defs#modlist, for example."""

    name: str
    purpose: str
    createdAt: str
    description: NotRequired[str]
    descriptionFacets: NotRequired[list[Facet]]
    avatar: NotRequired[Blob]
    labels: NotRequired[SelfLabels]


_ListItem = TypedDict("_ListItem", {"$type": Literal["app.bsky.graph.listitem"]})


class ListItem(_ListItem):
    """An account on a list. The subject is a DID, the list a URI."""

    subject: str
    list: str
    createdAt: str


_ListBlock = TypedDict("_ListBlock", {"$type": Literal["app.bsky.graph.listblock"]})


class ListBlock(_ListBlock):
    """A block of all accounts on a list. The subject is the URI of the list."""

    subject: str
    createdAt: str


class FeedItem(TypedDict):
    """app.bsky.graph.starterpack#feedItem."""

    uri: str


_StarterPack = TypedDict("_StarterPack", {"$type": Literal["app.bsky.graph.starterpack"]})


class StarterPack(_StarterPack):
    """Accounts and feeds for new users."""

    name: str
    createdAt: str
    description: NotRequired[str]
    descriptionFacets: NotRequired[list[Facet]]
    feeds: NotRequired[list[FeedItem]]
    list: str


_Verification = TypedDict("_Verification", {"$type": Literal["app.bsky.graph.verification"]})


class Verification(_Verification):
    """A verification of an account, with its handle and name of that time."""

    subject: str
    handle: str
    displayName: str
    createdAt: str


_Profile = TypedDict("_Profile", {"$type": Literal["app.bsky.actor.profile"]})


class Profile(_Profile):
    """The profile of an account. Its record key is `self`."""

    displayName: NotRequired[str]
    description: NotRequired[str]
    pronouns: NotRequired[str]
    website: NotRequired[str]
    avatar: NotRequired[Blob]
    banner: NotRequired[Blob]
    labels: NotRequired[SelfLabels]
    joinedViaStarterPack: NotRequired[StrongRef]
    pinnedPost: NotRequired[StrongRef]
    createdAt: NotRequired[str]


_Status = TypedDict("_Status", {"$type": Literal["app.bsky.actor.status"]})


class Status(_Status):
    """The status of an account: app.bsky.actor.status#live, for example."""

    status: str
    createdAt: str
    embed: NotRequired[External]
    durationMinutes: NotRequired[int]


_ChatDeclaration = TypedDict("_ChatDeclaration", {"$type": Literal["chat.bsky.actor.declaration"]})


class ChatDeclaration(_ChatDeclaration):
    """Which accounts may begin a chat: all, none or following."""

    allowIncoming: str
