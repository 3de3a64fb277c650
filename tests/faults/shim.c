/* Faults at the calls through which files change, for processes that start with LD_PRELOAD=shim.so.
 *
 * Once armed for a folder, every call that changes something below it is numbered from 1 and written to a trace, one
 * line each before it is made: number, function, path, second path (of a rename), bytes, separated by tabs. At one of
 * them the process dies, or from one of them on the system refuses what a full disk or a read-only one would.
 *
 * A file that is only opened for writing has not changed yet: opens count where they create or truncate. What a library
 * asks of the kernel without the C library (safetensors renames its temporary so) is not seen; the calls before and after
 * it are.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* What tests/faults/shim.py calls them by. */
enum mode { TRACE, KILL_BEFORE, KILL_AFTER, TEAR, FULL, READ_ONLY };

/* What a call asks of the disk: a full one refuses room, a read-only one refuses changes, neither refuses a flush of what
 * was written before, except that a full one may find only then that there is no room. */
enum demand { ROOM = 1, CHANGE = 2 };

static char folder[PATH_MAX];
static size_t folder_length;
static long chosen;
static enum mode mode;
static int refusal;
static int trace_fd;
static long counted;

void fault_arm(const char *path, long at, int how, int error, int trace) {
    chosen = at, mode = how, refusal = error, trace_fd = trace, counted = 0;
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
}

void fault_disarm(void) { folder_length = 0; }

/* ---- paths ---- */

static void path_of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = '\0';
}

static void absolute(int directory, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (directory == AT_FDCWD) {
        if (getcwd(base, sizeof base) == NULL) base[0] = '\0';
    } else {
        path_of_descriptor(directory, base);
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) path[0] = '\0';
}

static const char *inside(const char *path) {
    if (folder_length == 0 || strncmp(path, folder, folder_length) != 0 || path[folder_length] != '/') return NULL;
    return path + folder_length + 1;
}

/* ---- faults ---- */

static void die(void) {
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

static void record(const char *call, const char *path, const char *second, long bytes) {
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\n", counted, call, path, second, bytes);
    if (syscall(SYS_write, trace_fd, line, (size_t)length) != length) abort();
}

/* The number of a call that touches the folder, 0 for any other; does not return where the process is to die first. */
static long enter(const char *call, const char *path, const char *second, long bytes) {
    const char *here = inside(path), *there = inside(second);
    if (here == NULL && there == NULL) return 0;
    counted++;
    record(call, here ? here : "", there ? there : "", bytes);
    if (mode == KILL_BEFORE && counted == chosen) die();
    return counted;
}

static long enter_descriptor(const char *call, int fd, long bytes) {
    char path[PATH_MAX];
    if (folder_length == 0) return 0;
    path_of_descriptor(fd, path);
    return enter(call, path, "", bytes);
}

static long enter_path(const char *call, int directory, const char *name) {
    char path[PATH_MAX];
    if (folder_length == 0) return 0;
    absolute(directory, name, path);
    return enter(call, path, "", 0);
}

static long enter_paths(const char *call, int from, const char *old, int to, const char *new) {
    char first[PATH_MAX], second[PATH_MAX];
    if (folder_length == 0) return 0;
    absolute(from, old, first);
    absolute(to, new, second);
    return enter(call, first, second, 0);
}

static int refused(long number, int demand) {
    if (number == 0 || number < chosen) return 0;
    if ((mode == FULL && (demand & ROOM)) || (mode == READ_ONLY && (demand & CHANGE))) {
        errno = refusal;
        return 1;
    }
    return 0;
}

static void leave(long number) {
    if (number != 0 && number == chosen && mode == KILL_AFTER) die();
}

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) abort();
    return found;
}

#define CALL(number, demand, expression)     \
    do {                                     \
        long number_ = (number);             \
        if (refused(number_, demand)) return -1; \
        __typeof__(expression) result_ = (expression); \
        leave(number_);                      \
        return result_;                      \
    } while (0)

/* ---- writing ---- */

/* How much of a write is let through: half of one that is torn, and of the first one that finds the disk full, since a
 * disk takes what still fits before it refuses. */
static size_t admitted(long number, size_t bytes) {
    int halved = number != 0 && number == chosen && (mode == TEAR || mode == FULL);
    return halved && bytes > 1 ? bytes / 2 : bytes;
}

static int refused_write(long number, size_t bytes) {
    return !(mode == FULL && number == chosen && bytes > 1) && refused(number, ROOM | CHANGE);
}

static void after_write(long number) {
    if (number != 0 && number == chosen && mode == TEAR) die();
    leave(number);
}

#define WRITE(call, bytes, expression)                                \
    do {                                                              \
        long number = enter_descriptor(call, fd, (long)(bytes));      \
        if (refused_write(number, bytes)) return -1;                  \
        size_t size = admitted(number, bytes);                        \
        ssize_t result_ = (expression);                               \
        after_write(number);                                          \
        return result_;                                               \
    } while (0)

ssize_t write(int fd, const void *data, size_t bytes) { WRITE("write", bytes, REAL(write)(fd, data, size)); }

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    WRITE("pwrite", bytes, REAL(pwrite)(fd, data, size, offset));
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    WRITE("pwrite64", bytes, REAL(pwrite64)(fd, data, size, offset));
}

static size_t total(const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    return bytes;
}

/* One part after the other, until so many bytes are written. */
static ssize_t write_parts(int fd, const struct iovec *parts, int count, size_t size) {
    size_t done = 0;
    for (int i = 0; i < count && done < size; i++) {
        size_t wanted = parts[i].iov_len < size - done ? parts[i].iov_len : size - done;
        ssize_t written = REAL(write)(fd, parts[i].iov_base, wanted);
        if (written < 0) return done > 0 ? (ssize_t)done : -1;
        done += (size_t)written;
        if ((size_t)written < wanted) break;
    }
    return (ssize_t)done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t bytes = total(parts, count);
    WRITE("writev", bytes, size < bytes ? write_parts(fd, parts, count, size) : REAL(writev)(fd, parts, count));
}

int ftruncate(int fd, off_t size) {
    CALL(enter_descriptor("ftruncate", fd, 0), CHANGE, REAL(ftruncate)(fd, size));
}

int ftruncate64(int fd, off64_t size) {
    CALL(enter_descriptor("ftruncate64", fd, 0), CHANGE, REAL(ftruncate64)(fd, size));
}

int fallocate(int fd, int how, off_t offset, off_t size) {
    CALL(enter_descriptor("fallocate", fd, 0), ROOM | CHANGE, REAL(fallocate)(fd, how, offset, size));
}

/* What a killed process has written stays with the kernel, so that nothing has to wait for the disk. */
int fsync(int fd) { CALL(enter_descriptor("fsync", fd, 0), ROOM, number_ ? 0 : REAL(fsync)(fd)); }

int fdatasync(int fd) { CALL(enter_descriptor("fdatasync", fd, 0), ROOM, number_ ? 0 : REAL(fdatasync)(fd)); }

ssize_t sendfile(int fd, int from, off_t *offset, size_t bytes) {
    WRITE("sendfile", bytes, ((ssize_t(*)(int, int, off_t *, size_t))real("sendfile"))(fd, from, offset, size));
}

ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *offset, size_t bytes, unsigned flags) {
    WRITE("copy_file_range", bytes, REAL(copy_file_range)(from, start, fd, offset, size, flags));
}

/* ---- opening ---- */

static int changes(int flags) { return flags & (O_CREAT | O_TRUNC); }

static int opens_to_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY || changes(flags); }

/* 1 where the system refuses to open; the call's number, as far as it counts, is left in `number`. */
static int refused_open(const char *call, int directory, const char *name, int flags, long *number) {
    char path[PATH_MAX];
    *number = changes(flags) ? enter_path(call, directory, name) : 0;
    if (folder_length == 0 || !opens_to_write(flags)) return 0;
    absolute(directory, name, path);
    if (inside(path) == NULL) return 0;
    return refused(counted, changes(flags) ? ROOM | CHANGE : CHANGE);
}

#define MODE_OF(flags, last)                 \
    mode_t permissions = 0;                  \
    if ((flags) & (O_CREAT | O_TMPFILE)) {   \
        va_list more;                        \
        va_start(more, last);                \
        permissions = va_arg(more, mode_t);  \
        va_end(more);                        \
    }

#define OPEN(call, directory, expression)                                       \
    do {                                                                        \
        long number;                                                            \
        if (refused_open(call, directory, name, flags, &number)) return -1;     \
        int result_ = (expression);                                             \
        leave(number);                                                          \
        return result_;                                                         \
    } while (0)

int open(const char *name, int flags, ...) {
    MODE_OF(flags, flags)
    OPEN("open", AT_FDCWD, REAL(open)(name, flags, permissions));
}

int open64(const char *name, int flags, ...) {
    MODE_OF(flags, flags)
    OPEN("open64", AT_FDCWD, REAL(open64)(name, flags, permissions));
}

int openat(int directory, const char *name, int flags, ...) {
    MODE_OF(flags, flags)
    OPEN("openat", directory, REAL(openat)(directory, name, flags, permissions));
}

int openat64(int directory, const char *name, int flags, ...) {
    MODE_OF(flags, flags)
    OPEN("openat64", directory, REAL(openat64)(directory, name, flags, permissions));
}

int creat(const char *name, mode_t permissions) {
    int flags = O_CREAT | O_TRUNC | O_WRONLY;
    OPEN("creat", AT_FDCWD, REAL(creat)(name, permissions));
}

int creat64(const char *name, mode_t permissions) {
    int flags = O_CREAT | O_TRUNC | O_WRONLY;
    OPEN("creat64", AT_FDCWD, REAL(creat64)(name, permissions));
}

/* ---- names ---- */

int mkdir(const char *name, mode_t permissions) {
    CALL(enter_path("mkdir", AT_FDCWD, name), ROOM | CHANGE, REAL(mkdir)(name, permissions));
}

int mkdirat(int directory, const char *name, mode_t permissions) {
    CALL(enter_path("mkdirat", directory, name), ROOM | CHANGE, REAL(mkdirat)(directory, name, permissions));
}

int rename(const char *old, const char *new) {
    CALL(enter_paths("rename", AT_FDCWD, old, AT_FDCWD, new), CHANGE, REAL(rename)(old, new));
}

int renameat(int from, const char *old, int to, const char *new) {
    CALL(enter_paths("renameat", from, old, to, new), CHANGE, REAL(renameat)(from, old, to, new));
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    CALL(enter_paths("renameat2", from, old, to, new), CHANGE, REAL(renameat2)(from, old, to, new, flags));
}

int link(const char *old, const char *new) {
    CALL(enter_paths("link", AT_FDCWD, old, AT_FDCWD, new), ROOM | CHANGE, REAL(link)(old, new));
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    CALL(enter_paths("linkat", from, old, to, new), ROOM | CHANGE, REAL(linkat)(from, old, to, new, flags));
}

int symlink(const char *target, const char *name) {
    CALL(enter_path("symlink", AT_FDCWD, name), ROOM | CHANGE, REAL(symlink)(target, name));
}

int symlinkat(const char *target, int directory, const char *name) {
    CALL(enter_path("symlinkat", directory, name), ROOM | CHANGE, REAL(symlinkat)(target, directory, name));
}

int unlink(const char *name) { CALL(enter_path("unlink", AT_FDCWD, name), CHANGE, REAL(unlink)(name)); }

int unlinkat(int directory, const char *name, int flags) {
    CALL(enter_path("unlinkat", directory, name), CHANGE, REAL(unlinkat)(directory, name, flags));
}

int rmdir(const char *name) { CALL(enter_path("rmdir", AT_FDCWD, name), CHANGE, REAL(rmdir)(name)); }

int chmod(const char *name, mode_t permissions) {
    CALL(enter_path("chmod", AT_FDCWD, name), CHANGE, REAL(chmod)(name, permissions));
}

int fchmod(int fd, mode_t permissions) {
    CALL(enter_descriptor("fchmod", fd, 0), CHANGE, REAL(fchmod)(fd, permissions));
}

int fchmodat(int directory, const char *name, mode_t permissions, int flags) {
    CALL(enter_path("fchmodat", directory, name), CHANGE, REAL(fchmodat)(directory, name, permissions, flags));
}
