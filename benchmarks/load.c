/* A light gRPC load generator: unary calls over cleartext HTTP/2, many streams on several connections, one thread.
 *
 * It is in C because a Python client costs more CPU than the server. It counts grpc-status in the trailers, as a caller
 * does, not HTTP 200. Each AddItem has its own request_id.
 *
 *   closed loop   --in-flight K          a new call as soon as one is answered
 *   open loop     --rate R[:S][,R:S...]  calls by a schedule, R a second for S seconds; latency counts from the
 *                                        scheduled time; a call that finds no free stream within --patience
 *                                        counts as `unsent`
 *   once          --each                 one AddItem for every cart and sku in order, to fill a database
 *
 * It prints one line of JSON. Latencies are microseconds. Rates count the answers inside the window after the warm-up,
 * latencies the calls that were due inside it. `answered` includes the warm-up.
 *
 * cc -O2 -o load load.c -lnghttp2
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define CODES 17         /* grpc-status 0 to 16 */
#define RESETS 16        /* error codes of RST_STREAM: 7 is REFUSED_STREAM, 8 CANCEL */
#define WINDOWS 1200     /* of the timeline, 100 ms each */
#define WRITE_ENOUGH 65536
#define TICK 100000LL    /* the open loop checks its schedule every 0.1 ms at most */

enum { NOOP, ADD, GET, KINDS };
static const char *const KIND_NAMES[KINDS] = {"noop", "add", "get"};
static const char *const PATHS[KINDS] = {
    "/bench.v1.Bench/Noop", "/cartgrpc.v1.CartService/AddItem", "/cartgrpc.v1.CartService/GetCart"};

/* ---- options ---- */

struct phase { double rate; int64_t ends; };

static struct {
    const char *target, *calls;
    int connections, flood_connections, streams, in_flight, each, timeline;
    int64_t carts, users, skus, first_cart;
    double warmup, duration, patience, drain, flood_share, timeout, weights[KINDS];
    struct phase phases[16];
    int phase_count;
} opt = {.target = "127.0.0.1:50051", .calls = "noop", .connections = 8, .streams = 0, .in_flight = 64, .carts = 1000,
         .skus = 20, .warmup = 0.3, .duration = 2, .patience = 1, .drain = 5};

/* ---- time, chance, distributions ---- */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t random_state;
static uint64_t draw(void) { /* xorshift64*, seeded by the kernel: no two runs share a request_id */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 2685821657736338717ULL;
}
static double chance(void) { return (double)(draw() >> 11) / 9007199254740992.0; }

/* 64 buckets per power of two, so a quantile is at most 1.6 % too large. */
struct histogram { uint64_t counts[64 * 40], total, sum, max; };

static void put(struct histogram *h, int64_t ns) {
    uint64_t us = ns < 0 ? 0 : (uint64_t)ns / 1000;
    int shift = us < 128 ? 0 : 57 - __builtin_clzll(us);
    size_t at = (size_t)shift * 64 + (us >> shift);
    if (at >= 64 * 40) at = 64 * 40 - 1;
    h->counts[at]++, h->total++, h->sum += us;
    if (us > h->max) h->max = us;
}

static uint64_t quantile(const struct histogram *h, double q) {
    uint64_t want = (uint64_t)(q * (double)h->total + 0.5), seen = 0;
    if (want == 0) want = 1;
    for (size_t at = 0; at < 64 * 40; at++) {
        seen += h->counts[at];
        if (seen < want) continue;
        size_t shift = at < 128 ? 0 : at / 64 - 1;
        uint64_t value = ((at - shift * 64 + 1) << shift) - 1;
        return value < h->max ? value : h->max;
    }
    return h->max;
}

/* ---- results ---- */

struct tally { /* of all users but the flooding one, or of that one */
    uint64_t ok, refused, ok_in_window, refused_in_window, due, unsent, unfinished;
    struct histogram ok_latency, refused_latency;
};
static struct tally tallies[2];
static uint64_t by_code[CODES + 1], resets[RESETS], goaways, lost, no_status, http_errors, connect_errors, answered;
static struct histogram lateness;
static struct { uint32_t ok, refused, max_us; } windows[WINDOWS];
static int64_t t_start, t_window, t_end;

/* ---- connections and calls ---- */

struct call {
    int64_t due;
    int32_t stream;
    int active, flood, code, http;
    size_t length, sent;
    uint8_t body[256];
};

struct connection {
    nghttp2_session *session;
    int fd, active, going_away, writable, *free_calls, free_count;
    int64_t retry_at;
    uint8_t rest[WRITE_ENOUGH + 32768]; /* bytes still to write; a frame has at most 16 KiB and its header */
    size_t rest_length;
    struct call *calls;
};
static struct connection *connections;
static int epoll_fd, timer_fd, active_calls;
static struct sockaddr_in address;

/* Calls that wait for a free stream. The second queue is for a flood with its own connections. */
static struct queue { struct { int64_t due; int flood; } *arrivals; size_t first, count; } queues[2];
static const size_t queue_size = 1 << 20;

static void settle(struct connection *c, struct call *call, int64_t at) {
    struct tally *t = &tallies[call->flood];
    int counted = call->due >= t_window && call->due < t_end, in_window = at >= t_window && at < t_end;
    int ok = call->code == 0 && call->http == 200;
    answered++;
    if (counted) {
        if (call->code >= 0) by_code[call->code > 16 ? CODES : call->code]++;
        if (call->http != 200 && call->http) http_errors++;
        if (ok) t->ok++, put(&t->ok_latency, at - call->due);
        else t->refused++, put(&t->refused_latency, at - call->due);
    }
    if (in_window) ok ? t->ok_in_window++ : t->refused_in_window++;
    int64_t window = (at - t_start) / (SECOND / 10);
    if (window >= 0 && window < WINDOWS && !call->flood) {
        uint32_t us = (uint32_t)((at - call->due) / 1000);
        ok ? windows[window].ok++ : windows[window].refused++;
        if (ok && us > windows[window].max_us) windows[window].max_us = us;
    }
    call->active = 0;
    c->active--, active_calls--;
    c->free_calls[c->free_count++] = (int)(call - c->calls);
}

static int on_header(nghttp2_session *s, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t length, uint8_t flags, void *user) {
    (void)flags, (void)user;
    struct call *call = nghttp2_session_get_stream_user_data(s, frame->hd.stream_id);
    if (!call || length == 0 || length > 3) return 0;
    int number = 0;
    for (size_t i = 0; i < length; i++) number = number * 10 + (value[i] - '0');
    if (name_length == 11 && !memcmp(name, "grpc-status", 11)) call->code = number;
    if (name_length == 7 && !memcmp(name, ":status", 7)) call->http = number;
    return 0;
}

static int on_stream_close(nghttp2_session *s, int32_t stream, uint32_t error, void *user) {
    struct connection *c = user;
    struct call *call = nghttp2_session_get_stream_user_data(s, stream);
    if (!call || !call->active) return 0;
    if (error && call->code < 0) resets[error < RESETS ? error : 0]++;
    else if (call->code < 0) no_status++;
    settle(c, call, now());
    return 0;
}

static int on_frame(nghttp2_session *s, const nghttp2_frame *frame, void *user) {
    (void)s;
    if (frame->hd.type == NGHTTP2_GOAWAY) goaways++, ((struct connection *)user)->going_away = 1;
    return 0;
}

static ssize_t read_body(nghttp2_session *s, int32_t stream, uint8_t *out, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)s, (void)stream, (void)user;
    struct call *call = source->ptr;
    size_t n = call->length - call->sent < room ? call->length - call->sent : room;
    memcpy(out, call->body + call->sent, n);
    call->sent += n;
    if (call->sent == call->length) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "no");
    exit(2);
}

static int open_connection(struct connection *c) {
    static nghttp2_session_callbacks *callbacks;
    if (!callbacks) {
        nghttp2_session_callbacks_new(&callbacks);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    }
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (c->fd >= 0) close(c->fd);
        c->fd = -1, connect_errors++;
        c->retry_at = now() + SECOND / 10;
        return -1;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_client_new(&c->session, callbacks, c);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20},
                                         {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
    nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, 1 << 24);
    c->going_away = 0, c->writable = 1, c->rest_length = 0;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    return 0;
}

static void close_connection(struct connection *c) {
    for (int i = 0; i < opt.streams; i++)
        if (c->calls[i].active) lost++, settle(c, &c->calls[i], now());
    nghttp2_session_del(c->session);
    close(c->fd);
    c->session = NULL, c->fd = -1, c->retry_at = 0;
}

static int can_take(struct connection *c) {
    return c->fd >= 0 && !c->going_away && c->free_count > 0 &&
           (uint32_t)c->active < nghttp2_session_get_remote_settings(c->session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

static struct connection *find_connection(int flood) {
    static int next[2];
    int others = opt.connections - opt.flood_connections;
    int apart = flood && opt.flood_connections, count = apart ? opt.flood_connections : others;
    for (int tried = 0; tried < count; tried++) {
        struct connection *c = &connections[(apart ? others : 0) + next[apart]++ % count];
        if (can_take(c)) return c;
    }
    return NULL;
}

/* ---- requests, in protobuf's wire format ---- */

static uint8_t *text_field(uint8_t *p, int number, const char *text, size_t length) {
    *p++ = (uint8_t)(number << 3 | 2), *p++ = (uint8_t)length;
    memcpy(p, text, length);
    return p + length;
}

static size_t cart_name(char *out, size_t room, int64_t cart, int flood) {
    cart += opt.first_cart;
    if (flood) return (size_t)snprintf(out, room, "users/flooder/carts/c%03d", (int)(draw() % 1000));
    if (opt.users == opt.carts) return (size_t)snprintf(out, room, "users/u%07lld/carts/default", (long long)cart);
    return (size_t)snprintf(out, room, "users/u%07lld/carts/c%07lld", (long long)(cart % opt.users),
                            (long long)(cart / opt.users));
}

static uint8_t *uuid_field(uint8_t *p, int number) {
    static const char hex[] = "0123456789abcdef";
    uint64_t bits[2] = {(draw() & ~0xf000ULL) | 0x4000, (draw() & ~(3ULL << 62)) | (2ULL << 62)};
    *p++ = (uint8_t)(number << 3 | 2), *p++ = 36;
    for (int i = 0; i < 32; i++) {
        if (i == 8 || i == 12 || i == 16 || i == 20) *p++ = '-';
        *p++ = (uint8_t)hex[bits[i / 16] >> (60 - 4 * (i % 16)) & 15];
    }
    return p;
}

static size_t write_body(uint8_t *body, int kind, int64_t cart, int64_t sku, int flood) {
    char name[96], code[24];
    size_t length = cart_name(name, sizeof name, cart, flood);
    uint8_t *p = text_field(body + 5, 1, name, length);
    if (kind != GET) { /* the no-op gets the bytes of an AddItem */
        length = (size_t)snprintf(code, sizeof code, "sku-%06lld", (long long)sku);
        *p++ = 2 << 3 | 2, *p++ = (uint8_t)(length + 4);
        p = text_field(p, 3, code, length);
        *p++ = 5 << 3, *p++ = 1; /* quantity */
        p = uuid_field(p, 3);
    }
    size_t size = (size_t)(p - body - 5);
    uint8_t prefix[5] = {0, 0, 0, (uint8_t)(size >> 8), (uint8_t)size};
    memcpy(body, prefix, 5);
    return size + 5;
}

static int draw_kind(void) {
    double at = chance();
    for (int kind = 0; kind < KINDS; kind++)
        if ((at -= opt.weights[kind]) < 0) return kind;
    return ADD;
}

static void start_call(struct connection *c, int64_t due, int flood) {
    static int64_t turn;
    struct call *call = &c->calls[c->free_calls[--c->free_count]];
    int kind = draw_kind();
    int64_t cart = opt.each ? turn / opt.skus : (int64_t)(draw() % (uint64_t)opt.carts);
    int64_t sku = opt.each ? turn % opt.skus : (int64_t)(draw() % (uint64_t)opt.skus);
    turn++;
    *call = (struct call){.due = due, .active = 1, .flood = flood, .code = -1};
    call->length = write_body(call->body, kind, cart, sku, flood);
    char timeout[24];
    size_t timeout_length = (size_t)snprintf(timeout, sizeof timeout, "%dm", (int)(opt.timeout * 1000));
#define HEADER(name, value, length) \
    {(uint8_t *)name, (uint8_t *)value, sizeof name - 1, length, NGHTTP2_NV_FLAG_NO_COPY_NAME}
    nghttp2_nv headers[] = {
        HEADER(":method", "POST", 4), HEADER(":scheme", "http", 4), HEADER(":path", PATHS[kind], strlen(PATHS[kind])),
        HEADER(":authority", opt.target, strlen(opt.target)), HEADER("content-type", "application/grpc", 16),
        HEADER("te", "trailers", 8), HEADER("grpc-timeout", timeout, timeout_length)};
    nghttp2_data_provider body = {.source.ptr = call, .read_callback = read_body};
    call->stream = nghttp2_submit_request(c->session, NULL, headers, opt.timeout > 0 ? 7 : 6, &body, call);
    c->active++, active_calls++;
    if (call->stream < 0) c->going_away = 1, lost++, settle(c, call, now());
    if (due >= t_window && due < t_end) tallies[flood].due++, put(&lateness, now() - due);
}

/* ---- the loops ---- */

static void arrive(int64_t due) { /* joins the end of the queue */
    int flood = opt.flood_share > 0 && chance() < opt.flood_share;
    struct queue *queue = &queues[flood && opt.flood_connections];
    if (queue->count == queue_size) {
        if (due >= t_window && due < t_end) tallies[flood].unsent++, tallies[flood].due++;
        return;
    }
    size_t at = (queue->first + queue->count++) % queue_size;
    queue->arrivals[at].due = due, queue->arrivals[at].flood = flood;
}

static void send_waiting(struct queue *queue, int64_t at) {
    while (queue->count) {
        int64_t due = queue->arrivals[queue->first].due;
        int flood = queue->arrivals[queue->first].flood;
        struct connection *c = NULL;
        if (at - due > (int64_t)(opt.patience * SECOND)) {
            if (due >= t_window && due < t_end) tallies[flood].unsent++, tallies[flood].due++;
        } else if ((c = find_connection(flood)) == NULL) {
            return;
        }
        queue->first = (queue->first + 1) % queue_size, queue->count--;
        if (c) start_call(c, due, flood);
    }
}

static int follow_schedule(int64_t at) { /* returns 0 at the end of the schedule */
    static int64_t next;
    static int phase;
    if (!next) next = t_start;
    while (phase < opt.phase_count && next <= at) {
        if (next >= opt.phases[phase].ends) {
            phase++;
            continue;
        }
        if (opt.phases[phase].rate > 0) arrive(next);
        next += opt.phases[phase].rate > 0 ? (int64_t)(SECOND / opt.phases[phase].rate) : SECOND / 1000;
    }
    send_waiting(&queues[0], at);
    send_waiting(&queues[1], at);
    return phase < opt.phase_count && at < t_end;
}

static int keep_in_flight(int64_t at) {
    static int64_t left = -1;
    if (left < 0) left = opt.each ? opt.carts * opt.skus : INT64_MAX;
    struct connection *c;
    while (left > 0 && at < t_end && active_calls < opt.in_flight && (c = find_connection(0))) {
        start_call(c, now(), opt.flood_share > 0 && chance() < opt.flood_share);
        left--;
    }
    return left > 0 && at < t_end;
}

static void write_out(struct connection *c) {
    for (;;) { /* as few packets as possible: a packet per call would cost the server much CPU */
        const uint8_t *frame;
        ssize_t n = 0;
        while (c->rest_length < WRITE_ENOUGH && (n = nghttp2_session_mem_send(c->session, &frame)) > 0) {
            memcpy(c->rest + c->rest_length, frame, (size_t)n);
            c->rest_length += (size_t)n;
        }
        if (n < 0) return close_connection(c);
        if (!c->rest_length) break;
        ssize_t sent = send(c->fd, c->rest, c->rest_length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return close_connection(c);
        if (sent < 0) break;
        c->rest_length -= (size_t)sent;
        memmove(c->rest, c->rest + sent, c->rest_length);
    }
    if (c->writable == !c->rest_length) return;
    c->writable = !c->rest_length;
    struct epoll_event event = {.events = c->writable ? EPOLLIN : EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void read_in(struct connection *c) {
    static uint8_t buffer[1 << 18];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || nghttp2_session_mem_recv(c->session, buffer, (size_t)n) < 0) close_connection(c);
}

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void mend_connections(int64_t at) {
    for (int i = 0; i < opt.connections; i++) {
        struct connection *c = &connections[i];
        if (c->fd >= 0 && c->going_away && c->active == 0) close_connection(c);
        if (c->fd < 0 && at >= c->retry_at) open_connection(c);
        if (c->fd >= 0) write_out(c);
    }
}

static double run(void) {
    double cpu_start = 0, cpu_end = 0;
    int more = 1, in_window = 0;
    t_start = now();
    t_window = t_start + (int64_t)(opt.warmup * SECOND);
    t_end = opt.each ? INT64_MAX : t_window + (int64_t)(opt.duration * SECOND);
    int64_t ends = t_start;
    for (int i = 0; i < opt.phase_count; i++) ends = opt.phases[i].ends = ends + opt.phases[i].ends;
    struct itimerspec tick = {{0, TICK}, {0, TICK}};
    if (opt.phase_count) timerfd_settime(timer_fd, 0, &tick, NULL);
    for (;;) {
        int64_t at = now();
        if (!in_window && at >= t_window) in_window = 1, cpu_start = cpu_seconds();
        if (in_window == 1 && at >= t_end) in_window = 2, cpu_end = cpu_seconds();
        more = opt.phase_count ? follow_schedule(at) : keep_in_flight(at);
        int is_idle = !active_calls && !queues[0].count && !queues[1].count;
        if (!more && (is_idle || (!opt.each && at >= t_end + (int64_t)(opt.drain * SECOND)))) break;
        mend_connections(at);
        struct epoll_event events[64];
        int n = epoll_wait(epoll_fd, events, 64, 20);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            uint64_t ticks;
            if (!c) (void)!read(timer_fd, &ticks, sizeof ticks);
            else if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_in(c);
        }
    }
    for (int i = 0; i < opt.connections; i++)
        for (int j = 0; j < opt.streams; j++) {
            struct call *call = &connections[i].calls[j];
            if (call->active && call->due >= t_window && call->due < t_end) tallies[call->flood].unfinished++;
        }
    if (in_window < 2) t_end = now(), cpu_end = cpu_seconds();
    return cpu_end - cpu_start;
}

/* ---- the report ---- */

static void print_histogram(const char *name, const struct histogram *h) {
    if (h->total == 0) {
        printf("\"%s\":null", name);
        return;
    }
    printf("\"%s\":{\"p50\":%llu,\"p90\":%llu,\"p99\":%llu,\"max\":%llu,\"mean\":%.1f}", name,
           (unsigned long long)quantile(h, .5), (unsigned long long)quantile(h, .9), (unsigned long long)quantile(h, .99),
           (unsigned long long)h->max, (double)h->sum / (double)h->total);
}

static void print_tally(const struct tally *t, double seconds) {
    printf("\"due\":%llu,\"ok\":%llu,\"not_ok\":%llu,\"unsent\":%llu,\"unfinished\":%llu,"
           "\"ok_per_s\":%.1f,\"not_ok_per_s\":%.1f,",
           (unsigned long long)t->due, (unsigned long long)t->ok, (unsigned long long)t->refused,
           (unsigned long long)t->unsent, (unsigned long long)t->unfinished, (double)t->ok_in_window / seconds,
           (double)t->refused_in_window / seconds);
    print_histogram("ok_us", &t->ok_latency), putchar(',');
    print_histogram("not_ok_us", &t->refused_latency);
}

static void report(double cpu) {
    double seconds = (double)(t_end - t_window) / SECOND;
    if (opt.each) tallies[0].ok_in_window = tallies[0].ok, tallies[0].refused_in_window = tallies[0].refused;
    printf("{\"calls\":\"%s\",\"loop\":\"%s\",\"connections\":%d,\"in_flight\":%d,\"seconds\":%.3f,", opt.calls,
           opt.each ? "once" : opt.phase_count ? "open" : "closed", opt.connections,
           opt.phase_count ? opt.connections * opt.streams : opt.in_flight, seconds);
    print_tally(&tallies[0], seconds);
    if (opt.flood_share > 0) printf(",\"flood\":{"), print_tally(&tallies[1], seconds), putchar('}');
    printf(",\"grpc_status\":{");
    const char *comma = "";
    for (int code = 0; code <= CODES; code++)
        if (by_code[code]) printf("%s\"%d\":%llu", comma, code, (unsigned long long)by_code[code]), comma = ",";
    printf("},\"resets\":{"), comma = "";
    for (int code = 0; code < RESETS; code++)
        if (resets[code]) printf("%s\"%d\":%llu", comma, code, (unsigned long long)resets[code]), comma = ",";
    printf("},\"no_status\":%llu,\"http_errors\":%llu,\"goaways\":%llu,\"lost\":%llu,"
           "\"connect_errors\":%llu,\"answered\":%llu,",
           (unsigned long long)no_status, (unsigned long long)http_errors,
           (unsigned long long)goaways, (unsigned long long)lost, (unsigned long long)connect_errors, (unsigned long long)answered);
    print_histogram("late_us", &lateness);
    if (opt.timeline) {
        printf(",\"timeline\":[");
        int64_t last = (now() - t_start) / (SECOND / 10) + 1;
        for (int64_t i = 0; i < last && i < WINDOWS; i++)
            printf("%s[%u,%u,%u]", i ? "," : "", windows[i].ok, windows[i].refused, windows[i].max_us);
        putchar(']');
    }
    printf(",\"cpu_share\":%.3f}\n", cpu / seconds);
}

/* ---- the command line ---- */

static void usage(void) {
    fputs("usage: load --target IPV4:PORT --calls noop|add|get[:WEIGHT][,...] [--connections N]\n"
          "  closed loop: --in-flight K       open loop: --rate R[:S][,R:S...] --streams N-per-connection\n"
          "  once: --each                     window: --warmup S --duration S\n"
          "  --carts N --users N (as many as carts) --skus N --first-cart N --flood-share F (AddItem of one user)\n"
          "  --flood-connections N (of them, for the flood alone; default: it shares all)\n"
          "  --timeout S (a deadline for each call) --patience S (for a free stream) --drain S --timeline\n", stderr);
    exit(2);
}

static void parse_calls(const char *text) {
    double sum = 0;
    char copy[64], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *part = strtok_r(copy, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *weight = strchr(part, ':');
        int kind = 0;
        if (weight) *weight++ = 0;
        while (kind < KINDS && strcmp(part, KIND_NAMES[kind])) kind++;
        if (kind == KINDS) usage();
        sum += opt.weights[kind] = weight ? atof(weight) : 1;
    }
    for (int kind = 0; kind < KINDS; kind++) opt.weights[kind] /= sum;
}

static void parse_rate(char *text) {
    char *rest = NULL;
    for (char *part = strtok_r(text, ",", &rest); part && opt.phase_count < 16; part = strtok_r(NULL, ",", &rest)) {
        char *seconds = strchr(part, ':');
        opt.phases[opt.phase_count++] =
            (struct phase){atof(part), seconds ? (int64_t)(atof(seconds + 1) * SECOND) : INT64_MAX / 4};
    }
}

static void parse(int argc, char **argv) {
    static const struct option options[] = {
        {"target", 1, 0, 't'}, {"calls", 1, 0, 'c'}, {"connections", 1, 0, 'n'}, {"streams", 1, 0, 's'},
        {"in-flight", 1, 0, 'k'}, {"rate", 1, 0, 'r'}, {"each", 0, 0, 'e'}, {"warmup", 1, 0, 'w'},
        {"duration", 1, 0, 'd'}, {"carts", 1, 0, 'C'}, {"users", 1, 0, 'U'}, {"skus", 1, 0, 'S'},
        {"first-cart", 1, 0, 'F'}, {"flood-share", 1, 0, 'f'}, {"flood-connections", 1, 0, 'a'},
        {"timeout", 1, 0, 'o'}, {"patience", 1, 0, 'p'}, {"drain", 1, 0, 'D'}, {"timeline", 0, 0, 'T'}, {0, 0, 0, 0}};
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) switch (c) {
        case 't': opt.target = optarg; break;
        case 'c': opt.calls = optarg; break;
        case 'n': opt.connections = atoi(optarg); break;
        case 's': opt.streams = atoi(optarg); break;
        case 'k': opt.in_flight = atoi(optarg); break;
        case 'r': parse_rate(optarg); break;
        case 'e': opt.each = 1, opt.calls = "add", opt.warmup = 0; break;
        case 'w': opt.warmup = atof(optarg); break;
        case 'd': opt.duration = atof(optarg); break;
        case 'C': opt.carts = atoll(optarg); break;
        case 'U': opt.users = atoll(optarg); break;
        case 'S': opt.skus = atoll(optarg); break;
        case 'F': opt.first_cart = atoll(optarg); break;
        case 'f': opt.flood_share = atof(optarg); break;
        case 'a': opt.flood_connections = atoi(optarg); break;
        case 'o': opt.timeout = atof(optarg); break;
        case 'p': opt.patience = atof(optarg); break;
        case 'D': opt.drain = atof(optarg); break;
        case 'T': opt.timeline = 1; break;
        default: usage();
    }
    parse_calls(opt.calls);
    if (!opt.users) opt.users = opt.carts;
    double scheduled = 0;
    for (int i = 0; i < opt.phase_count; i++) scheduled += (double)opt.phases[i].ends / SECOND;
    if (opt.phase_count && scheduled < 1e6) opt.duration = scheduled - opt.warmup;
    if (opt.connections <= opt.flood_connections || opt.carts < 1 || opt.skus < 1 || opt.users < 1 || optind < argc)
        usage();
    if (!opt.phase_count && opt.connections > opt.in_flight) opt.connections = opt.in_flight;
    if (!opt.streams)
        opt.streams = opt.phase_count ? 1000 : (opt.in_flight + opt.connections - 1) / opt.connections;
    char host[64];
    const char *colon = strrchr(opt.target, ':');
    if (!colon || colon - opt.target >= (int)sizeof host) usage();
    snprintf(host, sizeof host, "%.*s", (int)(colon - opt.target), opt.target);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) usage();
}

int main(int argc, char **argv) {
    parse(argc, argv);
    if (getrandom(&random_state, sizeof random_state, 0) < 0) die("getrandom");
    random_state |= 1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    connections = calloc((size_t)opt.connections, sizeof *connections);
    for (int i = 0; i < 2; i++) queues[i].arrivals = malloc(queue_size * sizeof *queues[i].arrivals);
    for (int i = 0; i < opt.connections; i++) {
        struct connection *c = &connections[i];
        c->calls = calloc((size_t)opt.streams, sizeof *c->calls);
        c->free_calls = malloc((size_t)opt.streams * sizeof *c->free_calls);
        for (int j = opt.streams; j > 0; j--) c->free_calls[c->free_count++] = j - 1;
        if (open_connection(c) < 0) die("connect");
    }
    report(run());
    return 0;
}
