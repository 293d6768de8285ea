# Puts a Linux that is not packed where it runs, and goes there: in place of the part of a kernel file that unpacks.
# plain_kernel.py puts .set lines in front: BASE, TABLES (page tables of the first 4 GiB), the ends of what is moved.
# Entered as Documentation/x86/boot.rst says of the 32-bit protocol: flat memory, no paging, %esi -> boot_params;
# leaves as it says of the 64-bit protocol. The move goes downwards, because source and target overlap.
    .code32
start:
    cli
    movl %esi, %ebp
    movl $SOURCE_LAST, %esi
    movl $TARGET_LAST, %edi
    movl $WORDS, %ecx
    std
    rep movsl
    cld
    movl $TARGET_END, %edi          # what the file left out: zeros
    movl $ZEROS, %ecx
    xorl %eax, %eax
    rep stosl
    movl %cr4, %eax
    orl $0x20, %eax                 # PAE
    movl %eax, %cr4
    movl $TABLES, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x100, %eax                # long mode
    wrmsr
    lgdt BASE + (gdt_pointer - start)
    movl %cr0, %eax
    orl $0x80000001, %eax           # paging
    movl %eax, %cr0
    ljmp $0x10, $(BASE + (long_mode - start))
    .code64
long_mode:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movl %ebp, %esi
    movl $ENTRY, %eax
    jmp *%rax
    .balign 8
gdt:
    .quad 0, 0
    .quad 0x00af9a000000ffff        # 0x10: code, 64 bits
    .quad 0x00cf92000000ffff        # 0x18: data
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long BASE + (gdt - start)
